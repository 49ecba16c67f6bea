// Alphabet: counts -> two tables of symbols and frequencies, at the least cost in bits.
//
// Costs are code lengths in units of 2^-20 bit, as whole numbers: sums of them are exact in any order, so
// that every processor comes to the same plan, and the units are fine enough to keep the lengths convex.
#pragma once

#include <limits>
#include <vector>

#include "model.hpp"

namespace slimrun {

inline constexpr double kBit = 1 << 20;       // the unit
inline constexpr double kRawCost = 8 * kBit;  // of an element on top of its escape from the rare table

using Counts = std::array<uint64_t, kEntries>;

/// Of one element whose entry has frequency f <= kTotal; more than any plan may cost where f is 0.
double code_length(uint8_t frequency);

/// Shares 128 units among the entries that occur, and those that must be there anyway, at the least cost.
Frequencies share_units(const Counts& counts, const std::array<bool, kEntries>& needed);

/// Of elements with these counts.
double cost(const Counts& counts, const Frequencies& frequencies);

struct Symbol {
    uint64_t count;
    uint8_t high;
};

/// The high parts that occur, with what the values of each add up to.
std::vector<Symbol> commonest_first(const Histogram& counts, int low_bits);

/// A table of some of the symbols from a first one on, all others as its escape.
struct TablePlan {
    Symbols symbols{};
    Frequencies frequencies{};
    double cost = 0;  // of the symbols from the first on, escapes included
};

/// The table of `used` symbols from `first` on. keep_escape: it has a frequency though nothing here escapes.
TablePlan plan_table(const std::vector<Symbol>& symbols, size_t first, size_t used, bool keep_escape);

/// The commonest values, what escapes from them, and what the whole costs.
struct Alphabet {
    int low_bits = 0;
    TablePlan common, rare;
    double cost = std::numeric_limits<double>::infinity();
};

/// The cheapest alphabet for values with these counts. keep_escape: values may occur that the counts do not
/// know.
Alphabet plan_alphabet(const Histogram& counts, bool keep_escape);

}  // namespace slimrun
