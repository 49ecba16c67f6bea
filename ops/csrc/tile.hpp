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

namespace slimrun {

enum class TileKind : uint8_t { rans = 0, raw = 1, constant = 2 };

struct Tile {
    uint64_t offset = 0;  // of the packed bytes within the payload
    size_t size = 0;      // of the packed bytes
    TileKind kind = TileKind::raw;
    uint8_t value = 0;  // of every element of a constant tile, else 0
    uint32_t checksum = 0;
};

/// Packs `n` >= 1 values into at most n bytes at `to`. Sets all but the offset.
Tile pack_tile(const Encoder& encoder, const uint8_t* values, size_t n, Scratch& scratch,
               uint8_t* to) noexcept;

/// Verifies and unpacks `n` values from a tile's packed bytes. Returns nullptr, or what is wrong.
const char* unpack_tile(const Decoder& decoder, const Tile& tile, Bytes packed, uint8_t* values, size_t n,
                        Scratch& scratch) noexcept;

}  // namespace slimrun
