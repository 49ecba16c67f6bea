// Plan: array -> the model that codes it in the fewest bits.
//
// Everything is chosen by cost in bits on the array's own counts: how many low bits are raw, which symbols
// and frequencies the tables have, whether rows have levels, and how rows and columns are grouped in classes
// (Lloyd's algorithm with code length as the distance). What describes the choice counts as well.
#pragma once

#include "model.hpp"

namespace slimrun {

/// The cheapest model for an array with these counts, if it makes no difference where an element lies. An
/// empty array gets tables of nothing but the escape.
Model plan_counts(const Histogram& counts);

/// The same for the `numel` values of an array whose last dimension is `columns`: with classes and levels
/// where they pay. Large arrays are sampled for all but the frequencies. The answer does not depend on
/// `threads`.
Model plan_matrix(const uint8_t* values, uint64_t numel, uint64_t columns, size_t threads);

}  // namespace slimrun
