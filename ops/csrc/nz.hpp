// NZ: an int8 matrix in the tile order of Ascend hardware, coded tile by tile: the container "slimrun-nz".
//
// A matrix [n, k] is cut into fractals of 16 rows by 32 columns, 512 bytes each in row-major order, the last
// ones filled up with zeros. In memory they lie as (k1, n1, 16, 32): the fractal in column k, row n is number
// k * n1 + n. A tile is 8 x 8 fractals, 32768 bytes; the last ones of a row or column of tiles are smaller.
//
//     tile t = n_tile * ceil(k1 / 8) + k_tile
//
// so all tiles of the first 8 rows of fractals come first; inside a tile its fractals keep their order in
// memory, column after column.
//
// That order, and 8 bytes of index a tile, are those of the files that a program between quantizing and an
// Ascend device exchanges (executor.hpp). What the bytes mean is ours: hardware that expects the vendor's
// stream does not decode them.
//
// index, 8 bytes a tile, all numbers little-endian
//    0  uint32    where the tile begins in the payload
//    4  uint16    size of its packed bytes, 0 .. 32768
//    6  uint8     the value of a constant tile, else 0
//    7  uint8     kind (tile.hpp)
// payload
//    0  uint8[4]  magic "SLNZ"
//    4  uint8     version, 1
//    5  uint8     low_bits, 0 .. 7 (model.hpp)
//    6  uint16    flags, 0 in version 1
//    8  uint32    k1, columns of fractals, 1 .. 50000
//   12  uint32    n1, rows of fractals, 1 .. 50000
//   16  uint32    size of the payload in bytes
//   20  uint32    CRC-32C of the 88 bytes up to the tiles, this field left out, and the index
//   24  model     one for all tiles (model.hpp), without classes and levels
//   88  tiles     in order and without gaps, each:
//                   uint32  CRC-32C of the packed bytes
//                   packed bytes (tile.hpp)
//                 A constant tile has nothing here: its index entry says all.
//
// Opening checks everything but the packed bytes, in arithmetic that cannot overflow and before anything is
// allocated: sides of 50000 give less than 2^41 bytes, and each 32768 of them take 8 bytes of index.
#pragma once

#include "tile.hpp"

namespace slimrun {

inline constexpr uint8_t kNzVersion = 1;
inline constexpr uint32_t kFractalRows = 16;
inline constexpr uint32_t kFractalColumns = 32;
inline constexpr size_t kFractalBytes = kFractalRows * kFractalColumns;
inline constexpr uint32_t kTiling = 8;  // fractals a side of a tile
inline constexpr size_t kNzTileBytes = kTiling * kTiling * kFractalBytes;
inline constexpr uint32_t kMaxFractals = 50000;  // a side
inline constexpr size_t kNzIndexBytesPerTile = 8;
inline constexpr size_t kNzHeaderBytes = 24 + kPlainModelBytes;

/// The fractals of a matrix: k1 columns and n1 rows of them.
struct Fractals {
    uint32_t k1 = 0;
    uint32_t n1 = 0;

    uint64_t tiles_k() const { return (k1 + kTiling - 1) / kTiling; }
    uint64_t tiles_n() const { return (n1 + kTiling - 1) / kTiling; }
    uint64_t tiles() const { return tiles_k() * tiles_n(); }
    uint64_t bytes() const { return uint64_t{k1} * n1 * kFractalBytes; }
    uint64_t index_bytes() const { return kNzIndexBytesPerTile * tiles(); }
    /// Bytes that nz_encode() may use for the payload: no tile grows by more than its checksum.
    uint64_t payload_bound() const { return kNzHeaderBytes + 4 * tiles() + bytes(); }
};

/// Validated sizes. Throws std::invalid_argument that names the side that is 0 or beyond 50000.
Fractals make_fractals(uint64_t k1, uint64_t n1);

/// Codes `values`, fractals.bytes() of them in NZ order, to `payload` (payload_bound() bytes) and `index`
/// (index_bytes() bytes). Returns the size of the payload. The bytes do not depend on `threads` (0: every
/// core). Throws std::invalid_argument if the payload would take 4 GiB or more.
uint64_t nz_encode(const Fractals& fractals, const uint8_t* values, size_t threads, uint8_t* payload,
                   uint8_t* index);

/// A validated container: everything about it is known to be consistent but the packed bytes of the tiles.
class NzContainer {
  public:
    /// Throws std::invalid_argument with one line that says what is wrong. The bytes must outlive it.
    NzContainer(Bytes payload, Bytes index);

    const Fractals& fractals() const { return fractals_; }
    const Model& model() const { return model_; }
    Tile tile(uint64_t t) const;
    Bytes payload() const { return payload_; }
    Bytes packed(const Tile& tile) const { return {payload_.data + tile.offset, tile.size}; }

  private:
    Fractals fractals_;
    Model model_;
    Bytes payload_;
    Bytes index_;
};

/// Verifies and decodes all fractals into `values`. Throws std::invalid_argument that names the first bad
/// tile.
void nz_decode(const NzContainer& container, size_t threads, uint8_t* values);

}  // namespace slimrun
