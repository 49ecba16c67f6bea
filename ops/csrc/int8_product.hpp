// The exact int32 product of int8 matrices on CPUs without VNNI, where a tensor library's own saturates or is
// slow.
//
//     out[i][j] = sum over l of x[i][l] * w[j][l], in integers that wrap
//
// Pairs of products are added in int32 (vpmaddwd on int16), so nothing saturates. A block of x, widened to
// int16, stays in the L1 cache while the rows of w stream by.
#pragma once

#include <cstddef>
#include <cstdint>

namespace slimrun {

/// x [rows, depth], w [columns, depth] -> out [rows, columns]; on up to so many threads, 0 asks for every
/// core. `portable` leaves the processor's own kernels out.
void multiply(const int8_t* x, size_t rows, const int8_t* w, size_t columns, size_t depth, int32_t* out,
              size_t threads, bool portable);

/// Whether there are kernels for this processor; without them few rows of x are all that is worth it.
bool multiplies_fast();

}  // namespace slimrun
