// What quantizing asks of a float weight matrix, each in one pass over its numbers as they are stored.
//
//     extremes:  largest[r] = max |w[r]|,  normal[r] = max {|w| of the row : |w| <= threshold}, 0 without one
//     select:    the count-th largest |w| of all
//     round:     q[r][c] = clamp(round_half_even(w[r][c] / step[r]), low, high)
//     errors:    e = q * step - w;  sums of e^2 and w^2 by row, and how many weights the grid cuts
//
// Numbers become float32 exactly, some at a time, and every operation is a float32 one in the order written,
// so the results equal those of a tensor library that does the same step by step, bit for bit, on any
// instruction set and with any number of threads. The weights must be finite.
#pragma once

#include <cstddef>
#include <cstdint>

namespace slimrun {

enum class Number { float32, float16, bfloat16 };

/// A matrix [rows, columns] without gaps.
struct Weights {
    const void* numbers;
    Number number;
    size_t rows, columns;
};

/// normal [rows], largest [rows]; threshold >= 0.
void extremes(const Weights& weights, float threshold, float* normal, float* largest, size_t threads);

/// The `count`-th largest magnitude, 1 being the largest, if it is at least `guess`, and -1 if it is not: the
/// nearer the guess comes from below, the fewer numbers are kept to choose from. count > 0, guess > 0.
float select(const Weights& weights, size_t count, float guess, size_t threads);

/// out [rows, columns]; steps [rows], > 0; -128 <= low <= high <= 127.
void round(const Weights& weights, const float* steps, int low, int high, int8_t* out, size_t threads);

/// noise, signal and cut [rows] of the integers [rows, columns]. A weight is cut where |q| >= 127 and
/// |e| > share * step.
void errors(const Weights& weights, const float* steps, const int8_t* values, float share, double* noise,
            double* signal, uint32_t* cut, size_t threads);

/// sums [rows] of integers [rows, columns].
void row_sums(const int8_t* values, size_t rows, size_t columns, int32_t* sums, size_t threads);

}  // namespace slimrun
