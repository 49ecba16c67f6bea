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

/// Rows whose columns are rounded in this order, which names each once.
struct OrderedRows {
    size_t rows, columns;
    const int32_t* order;  // [columns]
};

/// w [rows, columns] in that order as exact, its integers nearest to w / step within [-limit, limit] as
/// plain, and exact - plain * step as missed; step [rows].
void in_order(const OrderedRows& of, const float* w, const float* step, float limit, float* exact,
              int8_t* plain, float* missed, unsigned threads);

/// q [rows, columns] in the order that columns had before: those of `fed` in the rows where `takes`, else of
/// `plain`, both in that order.
void out_of_order(const OrderedRows& of, const int8_t* fed, const int8_t* plain, const bool* takes, int8_t* q,
                  unsigned threads);

/// sums [rows] of bits[q + 128] of q [rows, columns]; bits [256].
void code_bits(const int8_t* q, size_t rows, size_t columns, const float* bits, float* sums,
               unsigned threads);

}  // namespace slimrun
