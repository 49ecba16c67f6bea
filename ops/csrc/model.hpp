// Model: histogram -> how many symbols, which ones, with what frequencies -> 64 bytes in the container.
//
// An int8 value v is split in two: code = uint8(v + half), half = low_bits ? 1 << (low_bits - 1) : 0;
//   high = code >> low_bits            goes through the entropy coder,
//   low  = code & ((1 << low_bits) - 1)   is stored as it is (low_bits.hpp).
// Sparse-quantized codes (-7..7 and rare outliers) have low_bits 0. Plain W8 tensors have 6 to 7.2 bits, far
// more symbols than a table holds, but their lowest bits are noise: storing those raw costs a few parts in a
// thousand.
//
// The entropy coder knows two tables of at most 15 symbols and an escape each, with frequencies in 1/128:
//   common   the commonest high values; any other is coded as the escape of `common` and then
//   rare     by this table; what this one lacks too is coded as the escape of `rare` and stored as a raw
//   byte.
// Sixteen entries fit one byte shuffle and 128 slots two vector registers, so a SIMD decoder needs no gather.
// Both the number of symbols and the frequencies are those of least total cost in bits on the tensor's
// histogram.
//
// Stored form of a table, 32 bytes: frequencies[16], symbols[16]. Entry 15 is the escape. Frequencies sum to
// 128, used symbols differ, every entry without a frequency has symbol 0 and so has the escape.
#pragma once

#include "histogram.hpp"

namespace slimrun {

inline constexpr int kProbabilityBits = 7;
inline constexpr uint32_t kTotal = 1u << kProbabilityBits;  // the frequencies of a table sum to this
inline constexpr size_t kEntries = 16;
inline constexpr size_t kEscape = 15;
inline constexpr int kMaxLowBits = 7;
inline constexpr size_t kModelBytes = 2 * 2 * kEntries;

struct Table {
    std::array<uint8_t, kEntries> frequencies{};
    std::array<uint8_t, kEntries> symbols{};
};

struct Model {
    int low_bits = 0;
    Table common;
    Table rare;
};

/// What is added to a value before it is cut into high and low bits, so that zero lies in the middle of its
/// bin.
inline uint8_t half_bin(int low_bits) { return static_cast<uint8_t>(low_bits ? 1 << (low_bits - 1) : 0); }

/// The high part of a value, 0 .. (256 >> low_bits) - 1.
inline uint8_t high_part(uint8_t value, int low_bits) {
    return static_cast<uint8_t>(static_cast<uint8_t>(value + half_bin(low_bits)) >> low_bits);
}

/// The value whose high part is `high` and whose low bits are all zero.
inline uint8_t value_of(uint8_t high, int low_bits) {
    return static_cast<uint8_t>((high << low_bits) - half_bin(low_bits));
}

/// The cheapest model for an array with these counts. An empty array gets tables of nothing but the escape.
Model choose_model(const Histogram& counts);

/// Writes the kModelBytes bytes of the stored form.
void write_model(const Model& model, uint8_t* to);

/// Reads the stored form. Throws std::invalid_argument if it breaks a rule named above.
Model read_model(const uint8_t* from, int low_bits);

}  // namespace slimrun
