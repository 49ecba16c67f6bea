// Model: what the entropy coder knows of an array, and how the container stores it.
//
// An int8 value v is split in two: code = uint8(v + half), half = low_bits ? 1 << (low_bits - 1) : 0;
//   high = code >> low_bits               goes through the entropy coder,
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
// No frequency is above 127: twice of it is a byte.
//
// An array that is a matrix (all but the last dimension are its rows) of columns % 64 == 0 may have more:
//   classes   Rows of unequal scale have unequal statistics. Each row belongs to one of up to 16 classes, and
//             each column to one of up to 2; every pair of them has frequencies of `common` of its own. The
//             symbols are shared.
//   levels    The grid itself differs by row: a row with the step s (1/256) holds the 15 values
//             (q * s + 128) >> 8 for q = -7 .. 7. `common` then codes q + 7 and has no symbols; a value
//             beside its row's grid escapes. low_bits is 0.
//
// Stored form:
//   uint8[16]  symbols of common       entry 15 is the escape; an entry of frequency 0 and the escape have
//   uint8[16]  symbols of rare         symbol 0
//   uint8[16]  frequencies of rare
//   uint8[row_classes * column_classes][16]  frequencies of common, of row class r and column class c at
//                                            r * column_classes + c
//   uint8[ceil(rows / 2)]   if row_classes > 1: class of row 2 i in the low four bits of byte i
//   uint64[columns / 64]    if column_classes > 1: bit j of word i is the class of column 64 i + j
//   uint16[rows]            if levels: s of each row
// Frequencies of a table sum to 128.
#pragma once

#include <vector>

#include "histogram.hpp"

namespace slimrun {

inline constexpr int kProbabilityBits = 7;
inline constexpr uint32_t kTotal = 1u << kProbabilityBits;  // the frequencies of a table sum to this
inline constexpr uint32_t kMaxFrequency = kTotal - 1;
inline constexpr size_t kEntries = 16;
inline constexpr size_t kEscape = 15;
inline constexpr int kMaxLowBits = 7;
inline constexpr size_t kMaxRowClasses = 16;
inline constexpr size_t kMaxColumnClasses = 2;
inline constexpr int kMiddleLevel = 7;
inline constexpr size_t kGroup = 64;  // columns come in groups of so many

using Symbols = std::array<uint8_t, kEntries>;
using Frequencies = std::array<uint8_t, kEntries>;

/// What of a model is there at all: all that its stored size depends on.
struct ModelLayout {
    size_t row_classes = 1;
    size_t column_classes = 1;
    bool levels = false;
    uint64_t rows = 0;     // of the matrix; 0 if the array is none with columns % 64 == 0
    uint64_t columns = 0;  // likewise

    /// Whether elements differ by where they lie.
    bool by_place() const { return row_classes > 1 || column_classes > 1 || levels; }
    uint64_t bytes() const;
};

struct Model {
    int low_bits = 0;
    ModelLayout layout;
    Symbols common{}, rare{};
    Frequencies rare_frequencies{};
    std::vector<Frequencies> frequencies;  // of common, [row_classes * column_classes]
    std::vector<uint8_t> row_class;        // [rows] or empty
    std::vector<uint64_t> column_class;    // [columns / 64] or empty
    std::vector<uint16_t> steps;           // [rows] or empty
};

/// Bytes of the stored form of a model without classes and levels.
inline constexpr size_t kPlainModelBytes = 4 * kEntries;

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

/// The value of entry `e` < 15 in a row of the given step.
inline uint8_t level_value(size_t e, uint16_t step) {
    return static_cast<uint8_t>(((static_cast<int32_t>(e) - kMiddleLevel) * step + 128) >> 8);
}

/// Writes the layout.bytes() bytes of the stored form.
void write_model(const Model& model, uint8_t* to);

/// Reads the stored form. Throws std::invalid_argument if it breaks a rule named above.
Model read_model(const uint8_t* from, int low_bits, const ModelLayout& layout);

}  // namespace slimrun
