#include "histogram.hpp"

#include <cmath>

namespace slimrun {

void count(Bytes values, Histogram& counts) noexcept {
    // Equal neighbours would wait for each other's increment: neighbours count in different tables.
    constexpr size_t kTables = 4;
    std::array<Histogram, kTables> tables{};
    const uint8_t* at = values.data;
    const uint8_t* const end = values.end();
    for (; end - at >= 8; at += 8) {
        const uint64_t word = load<uint64_t>(at);
        for (size_t i = 0; i < 8; ++i) ++tables[i % kTables][word >> (8 * i) & 255];
    }
    for (; at != end; ++at) ++tables[0][*at];
    for (const Histogram& table : tables)
        for (size_t value = 0; value < counts.size(); ++value) counts[value] += table[value];
}

double entropy_bits(const Histogram& counts) {
    uint64_t total = 0;
    for (uint64_t n : counts) total += n;
    double bits = 0;
    for (uint64_t n : counts) {
        if (n == 0) continue;
        const double share = static_cast<double>(n) / static_cast<double>(total);
        bits -= share * std::log2(share);
    }
    return bits + 0.0;  // a constant array has 0 bits, not -0
}

}  // namespace slimrun
