#include "classes.hpp"

#include <numeric>
#include <utility>

#include "kernels.hpp"
#include "threads.hpp"

namespace slimrun {
namespace {

constexpr size_t kRowsPerTask = 128;
constexpr size_t kScaleValues = 1024;        // of a row say how its scale compares to the others'
constexpr uint64_t kColumnSample = 1 << 17;  // so many values, or the rows below, say what columns are alike
constexpr uint64_t kColumnRows = 32;
constexpr double kColumnsWorthwhile = 0.01;  // two look-ups instead of one take a third more time

EntryOf entries_of_row(const Coder& coder, uint64_t row) {
    return coder.model().steps.empty() ? coder.entry_of : level_entries(coder.model().steps[row]);
}

/// Exact counts of the entries of the given rows.
Counts count_entries(const Coder& coder, const Rows& rows, const std::vector<uint32_t>& which) {
    Counts counts{};
    std::vector<const uint8_t*> runs;
    const bool alike = coder.model().steps.empty();
    for (const uint32_t row : which) {
        const uint8_t* const run = rows.begin(row);
        if (alike && rows.size(row) == rows.columns) {
            runs.push_back(run);
            continue;
        }
        coder.kernels.count(entries_of_row(coder, row), &run, 1, rows.size(row), counts.data());
    }
    coder.kernels.count(coder.entry_of, runs.data(), runs.size(), static_cast<size_t>(rows.columns),
                        counts.data());
    return counts;
}

RowClasses share_classes(std::vector<uint8_t> of, std::vector<Counts> counts) {
    RowClasses classes;
    for (const Counts& one : counts) {
        classes.frequencies.push_back(share_units(one, {}));
        classes.cost += cost(one, classes.frequencies.back());
    }
    if (counts.size() > 1)
        classes.cost += kBit * (8.0 * kEntries * static_cast<double>(counts.size()) +
                                4.0 * static_cast<double>(of.size()));
    classes.of = std::move(of);
    classes.counts = std::move(counts);
    return classes;
}

/// The scale of a row, and which one it is. With levels the scale is the share of entries, not of values.
using Scale = std::pair<uint64_t, uint32_t>;

std::vector<Scale> row_scales(const Coder& coder, const Rows& rows, size_t threads) {
    std::vector<Scale> scales(static_cast<size_t>(rows.number()));
    const uint64_t tasks = (scales.size() + kRowsPerTask - 1) / kRowsPerTask;
    run_tasks(tasks, batch_workers(threads, tasks), [&](size_t, uint64_t task) noexcept -> const char* {
        const size_t end = std::min<size_t>(scales.size(), (task + 1) * kRowsPerTask);
        for (size_t row = task * kRowsPerTask; row < end; ++row) {
            const uint64_t sum =
                coder.kernels.magnitudes(rows.begin(row), std::min(rows.size(row), kScaleValues));
            const uint64_t step = coder.model().steps.empty() ? 256 : coder.model().steps[row];
            scales[row] = {sum * 65536 / step, static_cast<uint32_t>(row)};
        }
        return nullptr;
    });
    return scales;
}

}  // namespace

RowClasses cluster_rows(const Coder& coder, const Rows& rows, size_t number, size_t threads) {
    std::vector<Scale> scales = row_scales(coder, rows, threads);
    const auto first_of = [&](size_t k) { return scales.begin() + k * scales.size() / number; };
    for (size_t k = 1; k < number; ++k)
        if (first_of(k) != scales.end()) std::nth_element(first_of(k - 1), first_of(k), scales.end());
    std::vector<uint8_t> of(scales.size());
    for (size_t k = 0; k < number; ++k)
        for (auto scale = first_of(k); scale != first_of(k + 1); ++scale)
            of[scale->second] = static_cast<uint8_t>(k);
    std::vector<std::vector<uint32_t>> members(number);
    for (size_t row = 0; row < of.size(); ++row) members[of[row]].push_back(static_cast<uint32_t>(row));
    std::vector<Counts> counts(number);
    run_tasks(number, batch_workers(threads, rows.numel >> 18),
              [&](size_t, uint64_t k) noexcept -> const char* {
                  counts[k] = count_entries(coder, rows, members[k]);
                  return nullptr;
              });
    return share_classes(std::move(of), std::move(counts));
}

RowClasses join(const RowClasses& classes) {
    Counts sum{};
    for (const Counts& one : classes.counts)
        for (size_t e = 0; e < kEntries; ++e) sum[e] += one[e];
    return share_classes(std::vector<uint8_t>(classes.of.size()), {sum});
}

namespace {

/// Every entry of some rows, spread over all of them.
struct EntrySample {
    std::vector<uint8_t> row_class;  // [rows]
    std::vector<uint8_t> entries;    // [rows][columns]
};

EntrySample sample_entries(const Coder& coder, const Rows& rows, const RowClasses& classes) {
    EntrySample some;
    const uint64_t looked_at = std::min(rows.number(), std::max(kColumnRows, kColumnSample / rows.columns));
    some.entries.resize(static_cast<size_t>(looked_at * rows.columns));
    for (uint64_t i = 0; i < looked_at; ++i) {
        const uint64_t row = i * rows.number() / looked_at;
        some.row_class.push_back(classes.of[row]);
        const EntryOf of = entries_of_row(coder, row);
        const uint8_t* const from = rows.begin(row);
        for (uint64_t j = 0; j < rows.columns; ++j) some.entries[i * rows.columns + j] = of.entry[from[j]];
    }
    return some;
}

/// What each column of the sample costs more with the second than with the first frequencies of each row
/// class.
std::vector<double> column_costs(const EntrySample& some, const std::vector<Frequencies>& first,
                                 const std::vector<Frequencies>& second) {
    const size_t columns = some.entries.size() / some.row_class.size();
    std::vector<double> costs(columns);
    const uint8_t* entry = some.entries.data();
    for (uint8_t row_class : some.row_class) {
        std::array<double, kEntries> more;
        for (size_t e = 0; e < kEntries; ++e)
            more[e] = code_length(second[row_class][e]) - code_length(first[row_class][e]);
        for (size_t j = 0; j < columns; ++j) costs[j] += more[*entry++];
    }
    return costs;
}

/// Frequencies of both column classes for each row class, and what the sample costs with them.
struct ColumnSplit {
    std::vector<Frequencies> of[kMaxColumnClasses];
    double cost = 0;
};

ColumnSplit split_columns(const EntrySample& some, const std::vector<bool>& second, size_t row_classes) {
    std::vector<Counts> counts[kMaxColumnClasses];
    for (auto& one : counts) one.assign(row_classes, Counts{});
    const uint8_t* entry = some.entries.data();
    for (uint8_t row_class : some.row_class)
        for (size_t j = 0; j < second.size(); ++j) ++counts[second[j]][row_class][*entry++];
    ColumnSplit split;
    std::array<bool, kEntries> all;
    all.fill(true);  // the sample need not know every entry
    for (size_t c = 0; c < kMaxColumnClasses; ++c)
        for (const Counts& one : counts[c]) {
            split.of[c].push_back(share_units(one, all));
            split.cost += cost(one, split.of[c].back());
        }
    return split;
}

}  // namespace

std::vector<bool> cluster_columns(const Coder& coder, const Rows& rows, const RowClasses& classes) {
    const EntrySample some = sample_entries(coder, rows, classes);
    const size_t row_classes = classes.frequencies.size();
    const size_t columns = some.entries.size() / some.row_class.size();
    std::vector<bool> second(columns, false);
    const ColumnSplit one_class = split_columns(some, second, row_classes);
    // begin with the columns that cost more than others with the frequencies of all
    std::vector<Frequencies> even(row_classes);
    for (Frequencies& frequencies : even) frequencies.fill(kTotal / kEntries);
    const std::vector<double> costs = column_costs(some, even, one_class.of[0]);
    const double mean = std::accumulate(costs.begin(), costs.end(), 0.0) / static_cast<double>(columns);
    for (size_t j = 0; j < columns; ++j) second[j] = costs[j] > mean;
    ColumnSplit split = split_columns(some, second, row_classes);
    for (int round = 0; round < 3 && split.cost < one_class.cost * (1 - kColumnsWorthwhile / 2); ++round) {
        const std::vector<double> more = column_costs(some, split.of[0], split.of[1]);
        for (size_t j = 0; j < columns; ++j) second[j] = more[j] < 0;
        split = split_columns(some, second, row_classes);
    }
    const double described =
        kBit * (static_cast<double>(columns) + 8.0 * kEntries * static_cast<double>(row_classes));
    const double saved = one_class.cost - split.cost - described;
    if (saved < one_class.cost * kColumnsWorthwhile) second.assign(columns, false);
    return second;
}

void add_column_classes(const Coder& coder, const Rows& rows, const RowClasses& classes,
                        const std::vector<bool>& second, Model& model) {
    const size_t number = classes.frequencies.size();
    std::vector<Counts> of_second(number, Counts{});
    for (uint64_t row = 0; row < rows.number(); ++row) {
        const EntryOf of = entries_of_row(coder, row);
        const uint8_t* const from = rows.begin(row);
        Counts& counts = of_second[classes.of[row]];
        for (uint64_t j = 0; j < rows.columns; ++j) counts[of.entry[from[j]]] += second[j];
    }
    model.frequencies.clear();
    for (size_t k = 0; k < number; ++k) {
        Counts of_first = classes.counts[k];
        for (size_t e = 0; e < kEntries; ++e) of_first[e] -= of_second[k][e];
        model.frequencies.push_back(share_units(of_first, {}));
        model.frequencies.push_back(share_units(of_second[k], {}));
    }
    model.layout.column_classes = kMaxColumnClasses;
    model.column_class.assign(static_cast<size_t>(rows.columns / kGroup), 0);
    for (uint64_t j = 0; j < rows.columns; ++j)
        model.column_class[j / kGroup] |= uint64_t{second[j]} << j % kGroup;
}

}  // namespace slimrun
