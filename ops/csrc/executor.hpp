// Executor: the program compress_executor, and the coder behind it.
//
//   compress_executor dimK dimN isTight k_value n_value compressType isTiling in.bin out.bin index.bin
//   info.bin
//
//   dimK, dimN    columns and rows of fractals, 1 .. 50000 each
//   isTight       1: an index of 8 bytes a tile; the 2-byte index of 0 is not public
//   k_value       1
//   n_value       1
//   compressType  0 for weights of few values (W8A8S), 1 for weights of many zeros (W16A16S)
//   isTiling      0
//   in.bin        int8 (dimK, dimN, 16, 32): the matrix in NZ order (nz.hpp), dimK * dimN * 512 bytes
//   out.bin       the coded weights
//   index.bin     8 bytes a tile, ceil(dimK / 8) * ceil(dimN / 8) tiles
//   info.bin      three uint32, little-endian: tiling_n, tiling_k, how many bytes of out.bin count
//
// This is how the weight compression of msModelSlim calls a coder. Two stand behind it, one a build:
//   compress_nz.cpp     our own container "slimrun-nz" (nz.hpp), on any machine; the default
//   compress_cann.cpp   the vendor's encoder on an Ascend card, container "ascend"; -DSLIMRUN_CANN=ON
#pragma once

#include <cstdint>
#include <vector>

namespace slimrun {

/// The arguments that a coder needs, validated.
struct Request {
    uint32_t dim_k = 0;
    uint32_t dim_n = 0;
    uint32_t is_tight = 1;
    uint32_t k_value = 1;
    uint32_t n_value = 1;
    uint32_t compress_type = 0;
    uint32_t is_tiling = 0;
};

/// What goes into the three files.
struct Compressed {
    std::vector<uint8_t> out;
    std::vector<uint8_t> index;
    uint32_t tiling_n = 0;
    uint32_t tiling_k = 0;
};

/// Name and version of the container that compress() writes, as `compress_executor --container` prints them.
extern const char* const kContainer;

/// Codes the fractals of in.bin. Throws an exception with one line that says what went wrong.
Compressed compress(const Request& request, const std::vector<uint8_t>& fractals);

}  // namespace slimrun
