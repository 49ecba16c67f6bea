#include "alphabet.hpp"

#include <algorithm>
#include <cmath>

namespace slimrun {
namespace {

constexpr double kNever = 1e30;

/// costs[f]: of one element with frequency f.
std::array<double, kTotal + 1> cost_table() {
    std::array<double, kTotal + 1> costs{};
    costs[0] = kNever;
    for (uint32_t f = 1; f <= kTotal; ++f) costs[f] = std::round(kBit * (kProbabilityBits - std::log2(f)));
    return costs;
}

const std::array<double, kTotal + 1> kCosts = cost_table();

double gain(uint64_t count, uint8_t frequency) {
    if (frequency >= kMaxFrequency) return -kNever;
    return static_cast<double>(count) * (kCosts[frequency] - kCosts[frequency + 1]);
}

double loss(uint64_t count, uint8_t frequency, uint8_t least) {
    if (frequency <= least) return kNever;
    return static_cast<double>(count) * (kCosts[frequency - 1] - kCosts[frequency]);
}

}  // namespace

double code_length(uint8_t frequency) { return kCosts[frequency]; }

// The cost is convex in every frequency, so once no move of a single unit from one entry to another helps,
// nothing does.
Frequencies share_units(const Counts& counts, const std::array<bool, kEntries>& needed) {
    uint64_t total = 0;
    for (uint64_t n : counts) total += n;
    Frequencies frequencies{}, least{};
    int spare = kTotal;
    size_t entries = 0;
    for (size_t e = 0; e < kEntries; ++e) {
        if (counts[e] == 0 && !needed[e]) continue;
        ++entries;
        least[e] = 1;
        const double exact = total ? static_cast<double>(counts[e]) / static_cast<double>(total) * kTotal : 1;
        frequencies[e] = static_cast<uint8_t>(std::clamp(exact, 1.0, static_cast<double>(kMaxFrequency)));
        spare -= frequencies[e];
    }
    if (entries < 2) {  // no frequency may be 128: an entry that never occurs takes the rest
        const size_t other = entries == 1 && frequencies[kEscape] ? 0 : kEscape;
        frequencies[other] = least[other] = 1;
        --spare;
        if (entries == 0) {
            frequencies[0] = least[0] = 1;
            --spare;
        }
    }
    for (;;) {
        size_t taker = kEntries, giver = kEntries;
        for (size_t e = 0; e < kEntries; ++e) {
            if (!least[e]) continue;
            if (frequencies[e] < kMaxFrequency &&
                (taker == kEntries ||
                 gain(counts[e], frequencies[e]) > gain(counts[taker], frequencies[taker])))
                taker = e;
            if (giver == kEntries ||
                loss(counts[e], frequencies[e], 1) < loss(counts[giver], frequencies[giver], 1))
                giver = e;
        }
        const bool better =
            gain(counts[taker], frequencies[taker]) > loss(counts[giver], frequencies[giver], 1);
        if (spare == 0 && !better) return frequencies;
        if (spare >= 0) ++frequencies[taker];
        if (spare <= 0) --frequencies[giver];
        spare += (spare < 0) - (spare > 0);
    }
}

double cost(const Counts& counts, const Frequencies& frequencies) {
    double sum = 0;
    for (size_t e = 0; e < kEntries; ++e)
        if (counts[e]) sum += static_cast<double>(counts[e]) * kCosts[frequencies[e]];
    return sum;
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

TablePlan plan_table(const std::vector<Symbol>& symbols, size_t first, size_t used, bool keep_escape) {
    TablePlan plan;
    Counts counts{};
    for (size_t i = first; i < symbols.size(); ++i) {
        const size_t e = i - first < used ? i - first : kEscape;
        counts[e] += symbols[i].count;
        if (e != kEscape) plan.symbols[e] = symbols[i].high;
    }
    std::array<bool, kEntries> needed{};
    needed[kEscape] = keep_escape;
    plan.frequencies = share_units(counts, needed);
    plan.cost = cost(counts, plan.frequencies);
    return plan;
}

namespace {

Alphabet plan_alphabet(const std::vector<Symbol>& symbols, int low_bits, uint64_t total, bool keep_escape) {
    Alphabet best;
    best.low_bits = low_bits;
    const size_t most = std::min(kEscape, symbols.size());
    for (size_t fewer = 0; fewer <= most; ++fewer) {
        const size_t used = most - fewer;
        TablePlan common = plan_table(symbols, 0, used, keep_escape);
        const size_t in_rare = std::min(kEscape, symbols.size() - used);
        TablePlan rare = plan_table(symbols, used, in_rare, keep_escape);
        double all = common.cost + rare.cost + kBit * low_bits * static_cast<double>(total);
        for (size_t i = used + in_rare; i < symbols.size(); ++i)
            all += kRawCost * static_cast<double>(symbols[i].count);
        if (all >= best.cost) break;  // fewer symbols help only where the rarest are rarer than 1/128
        best.cost = all;
        best.common = common;
        best.rare = rare;
    }
    return best;
}

}  // namespace

Alphabet plan_alphabet(const Histogram& counts, bool keep_escape) {
    uint64_t total = 0;
    for (uint64_t n : counts) total += n;
    Alphabet best = plan_alphabet(commonest_first(counts, 0), 0, total, keep_escape);
    for (int low_bits = 1; low_bits <= kMaxLowBits; ++low_bits) {
        const Alphabet other = plan_alphabet(commonest_first(counts, low_bits), low_bits, total, keep_escape);
        if (other.cost < best.cost) best = other;
    }
    return best;
}

}  // namespace slimrun
