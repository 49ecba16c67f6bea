#include "plan.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "kernels.hpp"
#include "rans.hpp"
#include "threads.hpp"

namespace slimrun {
namespace {

// Code lengths in units of 2^-20 bit, as whole numbers: sums of them are exact in any order, so that every
// processor comes to the same plan, and the units are fine enough to keep the lengths convex.
constexpr double kBit = 1 << 20;
constexpr double kRawCost = 8 * kBit;  // of an element on top of its escape from the rare table
constexpr double kNever = 1e30;

constexpr uint64_t kSampled = 1 << 16;  // so many values and more are looked at first
constexpr size_t kSampleStride = 63;    // at most, of the groups of 64
constexpr double kWorthwhile = 0.001;   // share of the size that classes must save, as they take time
constexpr size_t kRowsPerTask = 128;
constexpr size_t kScaleValues = 1024;  // of a row say how its scale compares to the others'
constexpr uint64_t kManyRows = 64;
constexpr uint64_t kCut = 1 << 16;
constexpr size_t kFewClasses = 4;
constexpr uint64_t kLevelRows = 8;
constexpr double kLevelsWorthwhile = 0.03;
constexpr uint64_t kColumnsFrom = 1 << 16;   // in smaller arrays classes of columns cost more than they save
constexpr uint64_t kColumnSample = 1 << 17;  // so many values, or the rows below, say what columns are alike
constexpr uint64_t kColumnRows = 32;
constexpr double kColumnsWorthwhile = 0.01;  // two look-ups instead of one take a third more time

using Counts = std::array<uint64_t, kEntries>;

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

/// Shares 128 units among the entries that occur, and those that must be there anyway, at the least cost. The
/// cost is convex in every frequency, so once no move of a single unit from one entry to another helps,
/// nothing does.
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

struct Symbol {
    uint64_t count;
    uint8_t high;
};

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

/// A table of `used` of the symbols from `first` on, all others as its escape.
struct TablePlan {
    Symbols symbols{};
    Frequencies frequencies{};
    double cost = 0;  // of the symbols from `first` on, escapes included
};

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

/// The commonest values, what escapes from them, and what the whole costs.
struct Alphabet {
    int low_bits = 0;
    TablePlan common, rare;
    double cost = std::numeric_limits<double>::infinity();
};

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

/// keep_escape: values may occur that the counts do not know.
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

/// The grid of a row: the step whose levels hold most of its values, from what the smallest common value
/// allows.
uint16_t find_step(const Histogram& row) {
    uint64_t total = 0;
    for (uint64_t n : row) total += n;
    int smallest = 1;  // a value that few elements have is an outlier, on or beside the grid
    while (smallest < 18 && (row[smallest] + row[256 - smallest]) * 64 < total) ++smallest;
    uint16_t best = 256;
    uint64_t most = 0;
    for (int step = std::max(256, 256 * smallest - 128); step < 256 * smallest + 128; ++step) {
        uint64_t on_grid = 0;
        for (size_t e = 0; e < kEscape; ++e) on_grid += row[level_value(e, static_cast<uint16_t>(step))];
        if (on_grid <= most) continue;
        most = on_grid;
        best = static_cast<uint16_t>(step);
    }
    return best;
}

/// The rows' grids, and the values beside them.
struct Levels {
    std::vector<uint16_t> steps;
    Counts entries{};
    Histogram beside{};
};

void add_row(const Histogram& row, uint16_t step, Levels& levels) {
    Histogram rest = row;
    for (size_t e = 0; e < kEscape; ++e) {
        uint64_t& count = rest[level_value(e, step)];
        levels.entries[e] += count;
        count = 0;
    }
    for (size_t value = 0; value < rest.size(); ++value) {
        levels.entries[kEscape] += rest[value];
        levels.beside[value] += rest[value];
    }
}

/// Whether grids by row save a lot, as they do where a coarse grid was written on the scale of each row's
/// largest weight: to be seen on a few rows.
bool levels_pay(const uint8_t* values, uint64_t rows, uint64_t columns) {
    Histogram all{};
    Levels levels;
    const uint64_t looked_at = std::min<uint64_t>(rows, kLevelRows);
    for (uint64_t i = 0; i < looked_at; ++i) {
        Histogram row{};
        count({values + i * rows / looked_at * columns, static_cast<size_t>(columns)}, row);
        for (size_t value = 0; value < row.size(); ++value) all[value] += row[value];
        add_row(row, find_step(row), levels);
    }
    const double n = static_cast<double>(looked_at * columns);
    const double cost_now = kBit * n * entropy_bits(all);
    const double cost_then = cost(levels.entries, share_units(levels.entries, {})) +
                             kRawCost * static_cast<double>(levels.entries[kEscape]) +
                             kBit * 16 * static_cast<double>(looked_at);
    return cost_then < cost_now * (1 - kLevelsWorthwhile);
}

Levels find_levels(const uint8_t* values, uint64_t rows, uint64_t columns, size_t threads) {
    const uint64_t tasks = (rows + kRowsPerTask - 1) / kRowsPerTask;
    const size_t workers = batch_workers(threads, tasks);
    std::vector<Levels> parts(workers);
    Levels levels;
    levels.steps.resize(static_cast<size_t>(rows));
    run_tasks(tasks, workers, [&](size_t worker, uint64_t task) noexcept -> const char* {
        const uint64_t end = std::min(rows, (task + 1) * kRowsPerTask);
        for (uint64_t i = task * kRowsPerTask; i < end; ++i) {
            Histogram row{};
            count({values + i * columns, static_cast<size_t>(columns)}, row);
            levels.steps[i] = find_step(row);
            add_row(row, levels.steps[i], parts[worker]);
        }
        return nullptr;
    });
    for (const Levels& part : parts) {
        for (size_t e = 0; e < kEntries; ++e) levels.entries[e] += part.entries[e];
        for (size_t value = 0; value < part.beside.size(); ++value)
            levels.beside[value] += part.beside[value];
    }
    return levels;
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

/// An array cut in rows; one that is no matrix is cut anywhere.
struct Rows {
    const uint8_t* values;
    uint64_t numel, columns;

    uint64_t number() const { return columns ? (numel + columns - 1) / columns : 0; }
    const uint8_t* begin(uint64_t row) const { return values + row * columns; }
    size_t size(uint64_t row) const { return static_cast<size_t>(std::min(columns, numel - row * columns)); }
};

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

/// Rows grouped in classes, and what coding them costs, with the side information.
struct RowClasses {
    std::vector<uint8_t> of;  // [rows]
    std::vector<Counts> counts;
    std::vector<Frequencies> frequencies;
    double cost = 0;
};

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

/// Rows of like scale in the same class, so many in each.
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

/// All rows in one class.
RowClasses join(const RowClasses& classes) {
    Counts sum{};
    for (const Counts& one : classes.counts)
        for (size_t e = 0; e < kEntries; ++e) sum[e] += one[e];
    return share_classes(std::vector<uint8_t>(classes.of.size()), {sum});
}

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
            more[e] = kCosts[second[row_class][e]] - kCosts[first[row_class][e]];
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

/// The columns of the second class, or none if a second class does not pay.
std::vector<bool> cluster_columns(const EntrySample& some, size_t row_classes) {
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

/// Splits the frequencies of each row class by column class, from exact counts.
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
        const std::vector<bool> second =
            cluster_columns(sample_entries(coder, rows, best), best.frequencies.size());
        if (std::find(second.begin(), second.end(), true) != second.end())
            add_column_classes(coder, rows, best, second, model);
    }
    return model;
}

}  // namespace slimrun
