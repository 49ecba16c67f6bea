// Low bits: the lowest 1 to 7 bits of each element as bit planes, 64 elements a group.
//
// Group g holds elements 64 g .. 64 g + 63 as `low_bits` little-endian uint64, plane 0 first: bit j of plane
// b is bit b of element 64 g + j. A plane is a mask register of a 64-lane SIMD decoder. The last group of a
// tile is padded with zeros to 64 elements. With low_bits 0 nothing is stored.
#pragma once

#include "bytes.hpp"

namespace slimrun {

/// Bytes that the planes of `n` elements take.
inline size_t low_bits_size(size_t n, int low_bits) {
    return (n + 63) / 64 * 8 * static_cast<size_t>(low_bits);
}

/// Stores the low bits of uint8(values[i] + half_bin) for `n` values at `planes`.
void pack_low_bits(const uint8_t* values, size_t n, int low_bits, uint8_t* planes) noexcept;

/// Adds the stored low bits to `n` values, modulo 256.
void add_low_bits(const uint8_t* planes, size_t n, int low_bits, uint8_t* values) noexcept;

}  // namespace slimrun
