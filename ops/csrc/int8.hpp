// The elementwise halves of the deployed int8 linears on the CPU, each in one pass over memory.
//
//     quantize:          xq[i]    = clamp(round_half_even(x[i] / scale) + offset, -128, 127)
//     dequantize:        y[r][c]  = float(acc[r][c] + bias[c]) * scale[c]
//     token_scale:       scale    = max(max |x[i]| / 127, 2^-23)
//     dequantize_token:  y[c]     = float(acc[c]) * scale * steps[c] + bias[c]
//
// Every operation is a float32 or int32 one in the order written, so the results equal those of a tensor
// library that does the same step by step, bit for bit, on any instruction set. Rounding adds and
// subtracts 1.5 * 2^23, which rounds half to even for |x / scale| < 2^22; beyond that the clamp has decided
// already. NaN becomes -128.
#pragma once

#include <cstddef>
#include <cstdint>

namespace slimrun {

/// x [count] -> out [count]; scale > 0, offset in [-128, 127].
void quantize(const float* x, size_t count, float scale, int32_t offset, int8_t* out);

/// acc [rows, columns] -> out [rows, columns]; bias [columns]; scale [columns], or one number for all
/// columns.
void dequantize(const int32_t* acc, size_t rows, size_t columns, const int32_t* bias, const float* scale,
                bool one_scale, float* out);

/// x [count] -> the symmetric step of this token; NaN when x holds NaN or infinity.
float token_scale(const float* x, size_t count);

/// acc [columns] -> out [columns]; steps [columns], or one number for all; bias [columns], or null.
void dequantize_token(const int32_t* acc, size_t columns, float scale, const float* steps, bool one_step,
                      const float* bias, float* out);

/// Squared error of a histogram on each of `grids` asymmetric int8 grids: errors[j] is the sum over bins i of
/// counts[i] * (centers[i] - (xq - offsets[j]) * scales[j])^2, xq as in quantize. In float64, the same bits
/// on any instruction set: vectors run over the grids, so no sum is reordered.
void grid_errors(const double* centers, const double* counts, size_t bins, const double* scales,
                 const double* offsets, size_t grids, double* errors);

}  // namespace slimrun
