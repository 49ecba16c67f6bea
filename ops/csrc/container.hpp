// Container: an int8 array of any shape as three sections, info || index || payload, all little-endian.
//
// A safetensors file stores the sections as three tensors (int64, int8, int8); one after the other they are a
// file.
//
// info, 40 + 8 ndim bytes
//    0  uint8[4]  magic "SLRN"
//    4  uint8     version, 1
//    5  uint8     ndim, 0 .. 8
//    6  uint8     layout of the model: bits 0..3 row classes - 1, bit 4 column classes - 1, bit 5 levels,
//                 other bits 0
//    7  uint8     low_bits, 0 .. 7 (model.hpp)
//    8  uint32    tile_size in elements, a power of two from 4096 to 2^20
//   12  uint32    CRC-32C of info, this field left out, and index
//   16  uint64    numel, below 2^48
//   24  uint64    size of index in bytes
//   32  uint64    size of payload in bytes
//   40  uint64[ndim]  shape
// index, model and 12 tiles bytes, tiles = ceil(numel / tile_size)
//    0  model     see model.hpp, at least 64 bytes
//    .  uint64[tiles]  bits 0..47 offset in payload, 48..55 value of a constant tile, 56..63 kind (tile.hpp)
//    .  uint32[tiles]  CRC-32C of each tile's packed bytes
// payload
//    The packed bytes of the tiles, in order and without gaps. Tile t holds the elements t * tile_size .. of
//    the array in row-major order; only the last one may be shorter.
//
// Opening checks everything but the tiles' bytes, in arithmetic that cannot overflow and before anything is
// allocated. numel is at most tile_size * tiles, and each tile takes 12 bytes of index, so a small hostile
// container cannot claim more than 2^20 elements for 12 bytes of its own.
#pragma once

#include "tile.hpp"

namespace slimrun {

inline constexpr uint8_t kVersion = 1;
inline constexpr size_t kMaxDims = 8;
inline constexpr uint64_t kMinTileSize = 1u << 12;
inline constexpr uint64_t kMaxTileSize = 1u << 20;
inline constexpr uint64_t kMaxElements = uint64_t{1} << 48;
inline constexpr size_t kIndexBytesPerTile = 12;

struct Header {
    size_t ndim = 0;
    std::array<uint64_t, kMaxDims> shape{};
    int low_bits = 0;
    ModelLayout model;
    uint64_t tile_size = 0;
    uint64_t numel = 0;
    uint64_t payload_bytes = 0;

    uint64_t tiles() const { return (numel + tile_size - 1) / tile_size; }
    uint64_t info_bytes() const { return 40 + 8 * ndim; }
    uint64_t index_bytes() const { return model.bytes() + kIndexBytesPerTile * tiles(); }
    /// The same whatever the model may be.
    uint64_t index_bound() const;
    /// Elements of tile `t`.
    size_t elements(uint64_t t) const {
        return static_cast<size_t>(t + 1 < tiles() ? tile_size : numel - t * tile_size);
    }
};

struct Sections {
    Bytes info, index, payload;
};

/// A validated header for an array to encode. Throws std::invalid_argument for what the format cannot hold.
Header make_header(const uint64_t* shape, size_t ndim, uint64_t tile_size);

/// Writes the entry of tile `t` into an index.
void write_entry(const Header& header, uint64_t t, const Tile& tile, uint8_t* index);

/// Writes the info section. The index must be complete, as the checksum covers it.
void write_info(const Header& header, const uint8_t* index, uint8_t* info);

/// Reads `info`, which may go on with the other sections, and validates it on its own.
Header read_header(Bytes info);

/// Cuts a contiguous container into its sections. Throws if the sizes do not add up.
Sections split(Bytes container);

/// A validated container: everything about it is known to be consistent but the bytes of the tiles.
class Container {
  public:
    /// Throws std::invalid_argument with one line that says what is wrong.
    explicit Container(const Sections& sections);

    const Header& header() const { return header_; }
    const Model& model() const { return model_; }
    Tile tile(uint64_t t) const;
    Bytes payload() const { return payload_; }
    Bytes packed(const Tile& tile) const { return {payload_.data + tile.offset, tile.size}; }

  private:
    Header header_;
    Model model_;
    Bytes index_;
    Bytes payload_;
};

}  // namespace slimrun
