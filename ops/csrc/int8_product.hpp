// The exact product of int8 matrices on CPUs without VNNI, where a tensor library's own saturates or is slow,
// and the int8 linears that are made of it in one pass: no int8 input and no int32 sum goes through memory
// whole.
//
//     sums[i][j] = sum over l of x[i][l] * w[j][l], in integers that wrap
//
// Pairs of products are added in int32 (vpmaddwd on int16), so nothing saturates. Where all weights of a row
// are small, as those of sparse quantization are, pairs fit int16: twice as many are multiplied at once
// (vpmaddubsw). A block of x stays in the L1 cache while rows of w stream by, a panel of w in the L2 cache
// for all of x.
#pragma once

#include <cstddef>
#include <cstdint>

namespace slimrun {

/// x [rows, depth], w [columns, depth] -> out [rows, columns]; on up to so many threads, 0 asks for every
/// core. `portable` leaves the processor's own kernels out.
void multiply(const int8_t* x, size_t rows, const int8_t* w, size_t columns, size_t depth, int32_t* out,
              size_t threads, bool portable);

/// The same between `quantize` and `dequantize` (int8.hpp): x [rows, depth] -> out [rows, columns], float.
void static_linear(const float* x, size_t rows, float scale, int32_t offset, const int8_t* w, size_t columns,
                   size_t depth, const int32_t* bias, const float* deq_scale, bool one_scale, float* out,
                   size_t threads);

/// The same with a scale a row of x, `token_scale`, and `dequantize_token`; `bias` [columns] may be null.
void dynamic_linear(const float* x, size_t rows, const int8_t* w, size_t columns, size_t depth,
                    const float* steps, bool one_step, const float* bias, float* out, size_t threads);

}  // namespace slimrun
