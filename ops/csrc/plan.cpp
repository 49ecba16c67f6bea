#include "plan.hpp"

#include <algorithm>
#include <utility>

#include "classes.hpp"
#include "levels.hpp"

namespace slimrun {
namespace {

constexpr uint64_t kSampled = 1 << 16;  // so many values and more are looked at first
constexpr size_t kSampleStride = 63;    // at most, of the groups of 64
constexpr double kWorthwhile = 0.001;   // share of the size that classes must save, as they take time
constexpr uint64_t kManyRows = 64;
constexpr uint64_t kCut = 1 << 16;
constexpr size_t kFewClasses = 4;
constexpr uint64_t kColumnsFrom = 1 << 16;  // in smaller arrays classes of columns cost more than they save

/// Which of the groups of 64 values are looked at: every one, or every so many. Odd, so that all columns of
/// a matrix have their turn.
size_t sample_stride(uint64_t numel) {
    return static_cast<size_t>(std::min<uint64_t>(kSampleStride, numel / kSampled)) | 1;
}

Histogram sample(const uint8_t* values, uint64_t numel) {
    Histogram counts{};
    const size_t stride = sample_stride(numel);
    if (stride == 1) {
        count({values, static_cast<size_t>(numel)}, counts);
        return counts;
    }
    std::vector<uint8_t> some;
    some.reserve(static_cast<size_t>(numel / stride + kGroup));
    for (uint64_t i = 0; i + kGroup <= numel; i += stride * kGroup)
        some.insert(some.end(), values + i, values + i + kGroup);
    count({some.data(), some.size()}, counts);
    return counts;
}

Model make_model(const Alphabet& alphabet) {
    Model model;
    model.low_bits = alphabet.low_bits;
    model.common = alphabet.common.symbols;
    model.rare = alphabet.rare.symbols;
    model.rare_frequencies = alphabet.rare.frequencies;
    model.frequencies = {alphabet.common.frequencies};
    return model;
}

Model make_model(Levels&& levels) {
    const std::vector<Symbol> symbols = commonest_first(levels.beside, 0);
    const TablePlan rare = plan_table(symbols, 0, std::min(kEscape, symbols.size()), false);
    Model model;
    model.layout.levels = true;
    model.rare = rare.symbols;
    model.rare_frequencies = rare.frequencies;
    model.frequencies = {share_units(levels.entries, {})};
    model.steps = std::move(levels.steps);
    return model;
}

}  // namespace

Model plan_counts(const Histogram& counts) { return make_model(plan_alphabet(counts, false)); }

Model plan_matrix(const uint8_t* values, uint64_t numel, uint64_t columns, size_t threads) {
    const bool matrix = columns > 0 && columns % kGroup == 0 && numel / columns >= 2;
    const bool sampled = sample_stride(numel) > 1;
    const bool levels = matrix && levels_pay(values, numel / columns, columns);
    Model model = levels ? make_model(find_levels(values, numel / columns, columns, threads))
                         : make_model(plan_alphabet(sample(values, numel), sampled));
    if (matrix) model.layout.rows = numel / columns, model.layout.columns = columns;
    if (!sampled && !matrix) return model;

    const Coder coder(model);
    const Rows rows{values, numel, matrix ? columns : kCut};
    const size_t number = rows.number() < kManyRows ? kFewClasses : kMaxRowClasses;
    RowClasses best = cluster_rows(coder, rows, number, threads);
    RowClasses one = join(best);
    if (!matrix || best.cost > one.cost * (1 - kWorthwhile)) best = std::move(one);
    model.frequencies = best.frequencies;
    if (best.frequencies.size() > 1) {
        model.layout.row_classes = best.frequencies.size();
        model.row_class = best.of;
    }
    if (matrix && numel >= kColumnsFrom) {
        const std::vector<bool> second = cluster_columns(coder, rows, best);
        if (std::find(second.begin(), second.end(), true) != second.end())
            add_column_classes(coder, rows, best, second, model);
    }
    return model;
}

}  // namespace slimrun
