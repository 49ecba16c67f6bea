// Histogram: how often each of the 256 byte values occurs, and the bits per element that it bounds.
#pragma once

#include <array>

#include "bytes.hpp"

namespace slimrun {

/// counts[v] for the int8 value v read as uint8 (-1 is 255).
using Histogram = std::array<uint64_t, 256>;

/// Adds the bytes of `values` to `counts`.
void count(Bytes values, Histogram& counts) noexcept;

/// Order-0 entropy in bits per element: what no code that looks at one element at a time goes below. 0 if
/// empty.
double entropy_bits(const Histogram& counts);

}  // namespace slimrun
