#include "model.hpp"

#include <algorithm>
#include <bitset>
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

namespace slimrun {
namespace {

constexpr double kRawBits = 8;  // what an element costs on top of its escape from the rare table

struct Symbol {
    uint64_t count;
    uint8_t high;
};

struct Plan {
    size_t symbols = 0;
    std::array<uint8_t, kEntries> frequencies{};
    double bits = INFINITY;
};

using Counts = std::array<uint64_t, kEntries>;

/// bits[f] = what one element with frequency f costs.
std::array<double, kTotal + 1> cost_table() {
    std::array<double, kTotal + 1> bits{};
    for (uint32_t f = 1; f <= kTotal; ++f) bits[f] = kProbabilityBits - std::log2(f);
    bits[0] = INFINITY;
    return bits;
}

const std::array<double, kTotal + 1> kBits = cost_table();

/// Bits saved by one more unit for this entry: never for an entry that does not occur.
double gain(uint64_t count, uint8_t frequency) {
    if (count == 0 || frequency == kTotal) return -INFINITY;
    return static_cast<double>(count) * (kBits[frequency] - kBits[frequency + 1]);
}

/// Bits lost by one unit less: never taken from an entry that would be left with none.
double loss(uint64_t count, uint8_t frequency) {
    if (frequency <= 1) return INFINITY;
    return static_cast<double>(count) * (kBits[frequency - 1] - kBits[frequency]);
}

/// Shares 128 units among the entries at the least cost. The cost is convex in every frequency, so once no
/// move of a single unit from one entry to another helps, nothing does.
std::array<uint8_t, kEntries> share_units(const Counts& counts) {
    uint64_t total = 0;
    for (uint64_t n : counts) total += n;
    std::array<uint8_t, kEntries> frequencies{};
    if (total == 0) {
        frequencies[kEscape] = kTotal;
        return frequencies;
    }
    int spare = kTotal;
    for (size_t e = 0; e < kEntries; ++e) {
        if (counts[e] == 0) continue;
        const double exact = static_cast<double>(counts[e]) / static_cast<double>(total) * kTotal;
        frequencies[e] = static_cast<uint8_t>(std::clamp(exact, 1.0, static_cast<double>(kTotal)));
        spare -= frequencies[e];
    }
    for (;;) {
        size_t taker = 0, giver = 0;
        for (size_t e = 1; e < kEntries; ++e) {
            if (gain(counts[e], frequencies[e]) > gain(counts[taker], frequencies[taker])) taker = e;
            if (loss(counts[e], frequencies[e]) < loss(counts[giver], frequencies[giver])) giver = e;
        }
        const bool better = gain(counts[taker], frequencies[taker]) > loss(counts[giver], frequencies[giver]);
        if (spare == 0 && !better) return frequencies;
        if (spare >= 0) ++frequencies[taker];
        if (spare <= 0) --frequencies[giver];
        spare += (spare < 0) - (spare > 0);
    }
}

/// The cost of coding `symbols` (commonest first) with the first `used` of them in the table. `escaped_bits`
/// is what the escaped elements cost besides their escape.
Plan plan_table(const std::vector<Symbol>& symbols, size_t first, size_t used, double escaped_bits) {
    Counts counts{};
    for (size_t i = first; i < symbols.size(); ++i)
        counts[i - first < used ? i - first : kEscape] += symbols[i].count;
    Plan plan{used, share_units(counts), escaped_bits};
    for (size_t e = 0; e < kEntries; ++e)
        if (counts[e]) plan.bits += static_cast<double>(counts[e]) * kBits[plan.frequencies[e]];
    return plan;
}

/// The best rare table when the `first` commonest symbols are in the common one.
Plan plan_rare(const std::vector<Symbol>& symbols, size_t first) {
    Plan best;
    for (size_t used = 0; used <= std::min(kEscape, symbols.size() - first); ++used) {
        double raw_bits = 0;
        for (size_t i = first + used; i < symbols.size(); ++i)
            raw_bits += kRawBits * static_cast<double>(symbols[i].count);
        const Plan plan = plan_table(symbols, first, used, raw_bits);
        if (plan.bits < best.bits) best = plan;
    }
    return best;
}

std::vector<Symbol> commonest_first(const Histogram& counts, int low_bits) {
    Histogram folded{};
    for (size_t value = 0; value < counts.size(); ++value)
        folded[high_part(static_cast<uint8_t>(value), low_bits)] += counts[value];
    std::vector<Symbol> symbols;
    for (size_t high = 0; high < folded.size(); ++high)
        if (folded[high]) symbols.push_back({folded[high], static_cast<uint8_t>(high)});
    std::stable_sort(symbols.begin(), symbols.end(),
                     [](const Symbol& a, const Symbol& b) { return a.count > b.count; });
    return symbols;
}

Table make_table(const std::vector<Symbol>& symbols, size_t first, const Plan& plan) {
    Table table;
    table.frequencies = plan.frequencies;
    for (size_t e = 0; e < plan.symbols; ++e) table.symbols[e] = symbols[first + e].high;
    return table;
}

void check_table(const Table& table, int low_bits) {
    uint32_t total = 0;
    std::bitset<256> seen;
    for (size_t e = 0; e < kEntries; ++e) {
        const uint8_t symbol = table.symbols[e];
        total += table.frequencies[e];
        if (e == kEscape || table.frequencies[e] == 0) {
            if (symbol != 0) throw std::invalid_argument("model: an entry that codes no symbol names one");
            continue;
        }
        if (seen.test(symbol) || symbol > 255 >> low_bits)
            throw std::invalid_argument("model: symbol " + std::to_string(symbol) +
                                        " is twice in a table or too large");
        seen.set(symbol);
    }
    if (total != kTotal)
        throw std::invalid_argument("model: frequencies sum to " + std::to_string(total) + ", not to 128");
}

}  // namespace

Model choose_model(const Histogram& counts) {
    Model best;
    best.common.frequencies[kEscape] = best.rare.frequencies[kEscape] = kTotal;
    double best_bits = INFINITY;
    uint64_t total = 0;
    for (uint64_t n : counts) total += n;
    for (int low_bits = 0; total && low_bits <= kMaxLowBits; ++low_bits) {
        const std::vector<Symbol> symbols = commonest_first(counts, low_bits);
        for (size_t used = 1; used <= std::min(kEscape, symbols.size()); ++used) {
            const Plan rare = plan_rare(symbols, used);
            const Plan common = plan_table(symbols, 0, used, rare.bits);
            const double bits = common.bits + static_cast<double>(low_bits) * static_cast<double>(total);
            if (bits >= best_bits) continue;
            best_bits = bits;
            best = {low_bits, make_table(symbols, 0, common), make_table(symbols, used, rare)};
        }
    }
    return best;
}

void write_model(const Model& model, uint8_t* to) {
    for (const Table* table : {&model.common, &model.rare}) {
        to = std::copy(table->frequencies.begin(), table->frequencies.end(), to);
        to = std::copy(table->symbols.begin(), table->symbols.end(), to);
    }
}

Model read_model(const uint8_t* from, int low_bits) {
    Model model;
    model.low_bits = low_bits;
    for (Table* table : {&model.common, &model.rare}) {
        std::copy_n(from, kEntries, table->frequencies.begin());
        std::copy_n(from + kEntries, kEntries, table->symbols.begin());
        from += 2 * kEntries;
        check_table(*table, low_bits);
    }
    return model;
}

}  // namespace slimrun
