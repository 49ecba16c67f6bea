// Levels: a matrix whose rows lie on grids of their own -> the step of each row, see model.hpp.
#pragma once

#include <vector>

#include "alphabet.hpp"

namespace slimrun {

/// The rows' grids, and the values beside them.
struct Levels {
    std::vector<uint16_t> steps;
    Counts entries{};
    Histogram beside{};
};

/// Whether grids by row save a lot, as they do where a coarse grid was written on the scale of each row's
/// largest weight: to be seen on a few rows.
bool levels_pay(const uint8_t* values, uint64_t rows, uint64_t columns);

/// The grid of every row. The answer does not depend on `threads`.
Levels find_levels(const uint8_t* values, uint64_t rows, uint64_t columns, size_t threads);

}  // namespace slimrun
