#include "levels.hpp"

#include <algorithm>

#include "threads.hpp"

namespace slimrun {
namespace {

constexpr uint64_t kLevelRows = 8;
constexpr double kLevelsWorthwhile = 0.03;
constexpr size_t kRowsPerTask = 128;

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

}  // namespace

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

}  // namespace slimrun
