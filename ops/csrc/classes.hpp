// Classes: rows and columns of like statistics -> groups with frequencies of their own (Lloyd's algorithm
// with code length as the distance). What describes the groups counts as well.
#pragma once

#include <algorithm>
#include <vector>

#include "alphabet.hpp"
#include "rans.hpp"

namespace slimrun {

/// An array cut in rows; one that is no matrix is cut anywhere.
struct Rows {
    const uint8_t* values;
    uint64_t numel, columns;

    uint64_t number() const { return columns ? (numel + columns - 1) / columns : 0; }
    const uint8_t* begin(uint64_t row) const { return values + row * columns; }
    size_t size(uint64_t row) const { return static_cast<size_t>(std::min(columns, numel - row * columns)); }
};

/// Rows grouped in classes, and what coding them costs, with the side information.
struct RowClasses {
    std::vector<uint8_t> of;  // [rows]
    std::vector<Counts> counts;
    std::vector<Frequencies> frequencies;
    double cost = 0;
};

/// Rows of like scale in the same class, so many in each. The answer does not depend on `threads`.
RowClasses cluster_rows(const Coder& coder, const Rows& rows, size_t number, size_t threads);

/// All rows in one class.
RowClasses join(const RowClasses& classes);

/// [columns], true for those of a second class; none if a second class does not pay.
std::vector<bool> cluster_columns(const Coder& coder, const Rows& rows, const RowClasses& classes);

/// Splits the frequencies of each row class by column class, from exact counts.
void add_column_classes(const Coder& coder, const Rows& rows, const RowClasses& classes,
                        const std::vector<bool>& second, Model& model);

}  // namespace slimrun
