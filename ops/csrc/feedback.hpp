// Rounding with error feedback on the CPU: one block of columns of many rows.
//
//     for each row r, column j of the block, in this order:
//         x       = w[r][j] / step[r]
//         q[r][j] = the cheaper of floor(x) and floor(x) + 1, both clamped to [-limit, limit], at the cost
//                   (x - q)^2 + price[j] * row_price[r] * bits[q + 128]
//         e[r][j] = (w[r][j] - q[r][j] * step[r]) / factor[j][j]
//         w[r][l] -= e[r][j] * factor[j][l]   for the later columns l of the block
//
// Source: GPTQ (Frantar et al. 2022) with the rounding of rate-distortion optimized quantization (Sullivan
// and Wiegand 1998): `bits` are the code lengths of the levels.
#pragma once

#include <cstddef>
#include <cstdint>

namespace slimrun {

struct FeedbackBlock {
    size_t rows, columns;
    const float* w;          // [rows, columns]
    const float* factor;     // [columns, columns], upper triangular
    const float* step;       // [rows]
    const float* price;      // [columns]
    const float* row_price;  // [rows]
    const float* bits;       // [256]
    float limit;
};

/// q and e [rows, columns] are written. The result depends neither on the number of threads nor on the
/// processor.
void feedback(const FeedbackBlock& block, int8_t* q, float* e, unsigned threads);

/// sums [rows] of bits[q + 128] of q [rows, columns]; bits [256].
void code_bits(const int8_t* q, size_t rows, size_t columns, const float* bits, float* sums,
               unsigned threads);

}  // namespace slimrun
