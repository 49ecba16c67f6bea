#include "low_bits.hpp"

#include <algorithm>

#include "model.hpp"

namespace slimrun {
namespace {

constexpr uint64_t kOnes = 0x0101010101010101u;

/// Bit 0 of byte k becomes bit k: the product moves each to the top byte, and no two terms meet.
uint64_t gather_bits(uint64_t bytes) { return (bytes & kOnes) * 0x0102040810204080u >> 56; }

/// Bit k becomes bit 0 of byte k: each byte keeps its own bit of a copy, and adding 127 carries it to bit 7.
uint64_t spread_bits(uint64_t bits) {
    const uint64_t own_bit = bits * kOnes & 0x8040201008040201u;
    return (own_bit + 0x7F * kOnes) >> 7 & kOnes;
}

}  // namespace

void pack_low_bits(const uint8_t* values, size_t n, int low_bits, uint8_t* planes) noexcept {
    const uint8_t half = half_bin(low_bits);
    for (size_t i = 0; i < n && low_bits; i += kGroup) {
        uint8_t codes[kGroup] = {};
        const size_t size = std::min(kGroup, n - i);
        for (size_t j = 0; j < size; ++j) codes[j] = static_cast<uint8_t>(values[i + j] + half);
        for (int plane = 0; plane < low_bits; ++plane, planes += 8)
            for (size_t j = 0; j < 8; ++j)
                planes[j] = static_cast<uint8_t>(gather_bits(load<uint64_t>(codes + 8 * j) >> plane));
    }
}

void add_low_bits(const uint8_t* planes, size_t n, int low_bits, uint8_t* values) noexcept {
    for (size_t i = 0; i < n && low_bits; i += kGroup, planes += 8 * low_bits) {
        uint8_t low[kGroup];
        for (size_t j = 0; j < 8; ++j) {
            uint64_t word = 0;
            for (int plane = 0; plane < low_bits; ++plane)
                word |= spread_bits(planes[8 * plane + j]) << plane;
            store(low + 8 * j, word);
        }
        const size_t size = std::min(kGroup, n - i);
        for (size_t j = 0; j < size; ++j) values[i + j] = static_cast<uint8_t>(values[i + j] + low[j]);
    }
}

}  // namespace slimrun
