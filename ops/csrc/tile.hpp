// Tile: how a run of elements is stored, so that any tile decodes alone.
//
//   kind      packed bytes                                     chosen when
//   rans      see rans.hpp                                     it is smaller than raw
//   raw       the elements as they are                         otherwise: a tile never grows
//   constant  none, the value is in the index entry            all elements are equal
//
// A tile's CRC-32C is taken over its packed bytes and verified before they are decoded.
#pragma once

#include "rans.hpp"
#include "threads.hpp"

namespace slimrun {

enum class TileKind : uint8_t { rans = 0, raw = 1, constant = 2 };

struct Tile {
    uint64_t offset = 0;  // of the packed bytes within the payload
    size_t size = 0;      // of the packed bytes
    TileKind kind = TileKind::raw;
    uint8_t value = 0;  // of every element of a constant tile, else 0
    uint32_t checksum = 0;
};

/// Tiles are worked on in batches of kMaxChains neighbours.
inline uint64_t batch_count(uint64_t tiles) { return (tiles + kMaxChains - 1) / kMaxChains; }
/// Tiles of the batch that begins with tile `t`.
inline size_t batch_size(uint64_t tiles, uint64_t t) {
    return static_cast<size_t>(std::min<uint64_t>(kMaxChains, tiles - t));
}

/// A tile to pack: `n` >= 1 values, which begin at element `first` of the array, into at most n bytes at
/// `to`.
struct PackTask {
    const uint8_t* values;
    size_t n;
    uint64_t first;
    uint8_t* to;
};

/// A tile to unpack. Bytes behind the packed ones up to `readable` may be read, though they are never used.
struct UnpackTask {
    Tile tile;
    Bytes packed;
    const uint8_t* readable;
    uint8_t* values;
    size_t n;
    uint64_t first;
};

/// Packs up to kMaxChains tiles together. Sets all of `tiles` but the offsets.
void pack_tiles(const Coder& coder, const PackTask* tasks, size_t count, Scratch& scratch,
                Tile* tiles) noexcept;

/// Verifies and unpacks up to kMaxChains tiles together. Returns what is wrong with the first bad one, which
/// the task of a Failure numbers, or no problem.
Failure unpack_tiles(const Coder& coder, const UnpackTask* tasks, size_t count, Scratch& scratch) noexcept;

}  // namespace slimrun
