#include "model.hpp"

#include <algorithm>
#include <bitset>
#include <stdexcept>
#include <string>

namespace slimrun {
namespace {

void check_frequencies(const Frequencies& frequencies) {
    uint32_t total = 0;
    for (uint8_t frequency : frequencies) {
        total += frequency;
        if (frequency > kMaxFrequency) throw std::invalid_argument("model: a frequency is above 127");
    }
    if (total != kTotal)
        throw std::invalid_argument("model: frequencies sum to " + std::to_string(total) + ", not to 128");
}

/// `used[e]`: whether the entry has a frequency anywhere.
void check_symbols(const Symbols& symbols, const std::bitset<kEntries>& used, int low_bits) {
    std::bitset<256> seen;
    for (size_t e = 0; e < kEntries; ++e) {
        const uint8_t symbol = symbols[e];
        if (e == kEscape || !used.test(e)) {
            if (symbol != 0) throw std::invalid_argument("model: an entry that codes no symbol names one");
            continue;
        }
        if (seen.test(symbol) || symbol > 255 >> low_bits)
            throw std::invalid_argument("model: symbol " + std::to_string(symbol) +
                                        " is twice in a table or too large");
        seen.set(symbol);
    }
}

std::bitset<kEntries> used_entries(const Frequencies& frequencies) {
    std::bitset<kEntries> used;
    for (size_t e = 0; e < kEntries; ++e) used.set(e, frequencies[e] > 0);
    return used;
}

}  // namespace

uint64_t ModelLayout::bytes() const {
    return 3 * kEntries + row_classes * column_classes * kEntries + (row_classes > 1 ? (rows + 1) / 2 : 0) +
           (column_classes > 1 ? columns / kGroup * 8 : 0) + (levels ? 2 * rows : 0);
}

void write_model(const Model& model, uint8_t* to) {
    to = std::copy(model.common.begin(), model.common.end(), to);
    to = std::copy(model.rare.begin(), model.rare.end(), to);
    to = std::copy(model.rare_frequencies.begin(), model.rare_frequencies.end(), to);
    for (const Frequencies& frequencies : model.frequencies)
        to = std::copy(frequencies.begin(), frequencies.end(), to);
    for (size_t row = 0; row < model.row_class.size(); row += 2, ++to) {
        const uint8_t second = row + 1 < model.row_class.size() ? model.row_class[row + 1] : 0;
        *to = static_cast<uint8_t>(model.row_class[row] | second << 4);
    }
    for (uint64_t word : model.column_class) {
        store(to, word);
        to += 8;
    }
    for (uint16_t step : model.steps) {
        store(to, step);
        to += 2;
    }
}

Model read_model(const uint8_t* from, int low_bits, const ModelLayout& layout) {
    Model model;
    model.low_bits = low_bits;
    model.layout = layout;
    for (auto* part : {&model.common, &model.rare, &model.rare_frequencies}) {
        std::copy_n(from, kEntries, part->begin());
        from += kEntries;
    }
    check_frequencies(model.rare_frequencies);
    check_symbols(model.rare, used_entries(model.rare_frequencies), low_bits);

    std::bitset<kEntries> used;
    model.frequencies.resize(layout.row_classes * layout.column_classes);
    for (Frequencies& frequencies : model.frequencies) {
        std::copy_n(from, kEntries, frequencies.begin());
        from += kEntries;
        check_frequencies(frequencies);
        used |= used_entries(frequencies);
    }
    check_symbols(model.common, layout.levels ? std::bitset<kEntries>() : used, low_bits);

    if (layout.row_classes > 1) {
        model.row_class.resize(static_cast<size_t>(layout.rows));
        for (size_t row = 0; row < model.row_class.size(); ++row) {
            model.row_class[row] = static_cast<uint8_t>(from[row / 2] >> (row % 2 * 4) & 15);
            if (model.row_class[row] >= layout.row_classes)
                throw std::invalid_argument("model: row " + std::to_string(row) +
                                            " is of a class that does not exist");
        }
        from += (layout.rows + 1) / 2;
    }
    if (layout.column_classes > 1) {
        model.column_class.resize(static_cast<size_t>(layout.columns / kGroup));
        for (uint64_t& word : model.column_class) {
            word = load<uint64_t>(from);
            from += 8;
        }
    }
    if (layout.levels) {
        model.steps.resize(static_cast<size_t>(layout.rows));
        for (uint16_t& step : model.steps) {
            step = load<uint16_t>(from);
            from += 2;
        }
    }
    return model;
}

}  // namespace slimrun
