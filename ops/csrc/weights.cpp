#include "weights.hpp"

#include <algorithm>
#include <cstring>
#include <functional>
#include <vector>

#include "clones.hpp"
#include "threads.hpp"

namespace slimrun {
namespace {

constexpr size_t kAtOnce = 2048;       // numbers that are float32 at once: they stay in the nearest cache
constexpr size_t kLanes = 16;          // partial sums, so that vectors need not reorder any
constexpr size_t kTask = 1 << 18;      // numbers that are worth a thread's while
constexpr float kRound = 12582912.0f;  // 1.5 * 2^23, as in int8.cpp
constexpr int32_t kMagnitude = 0x7FFFFFFF;

uint32_t bits_of(float number) {
    uint32_t bits;
    std::memcpy(&bits, &number, sizeof bits);
    return bits;
}

float number_of(uint32_t bits) {
    float number;
    std::memcpy(&number, &bits, sizeof number);
    return number;
}

SLIMRUN_CLONES
void from_float16(const uint16_t* from, size_t count, float* to) {
    for (size_t i = 0; i < count; ++i) {
        const int32_t magnitude = from[i] & 0x7FFF;
        const uint32_t usual = static_cast<uint32_t>((magnitude << 13) + (112 << 23));
        const float small = static_cast<float>(magnitude) * 0x1p-24f;
        uint32_t bits;
        std::memcpy(&bits, &small, sizeof bits);
        bits = (magnitude < 0x400 ? bits : usual) | static_cast<uint32_t>(from[i] & 0x8000) << 16;
        std::memcpy(to + i, &bits, sizeof bits);
    }
}

SLIMRUN_CLONES
void from_bfloat16(const uint16_t* from, size_t count, float* to) {
    for (size_t i = 0; i < count; ++i) {
        const uint32_t bits = static_cast<uint32_t>(from[i]) << 16;
        std::memcpy(to + i, &bits, sizeof bits);
    }
}

/// Numbers from the first one on as float32: in `buffer`, or where they lie.
const float* floats(const Weights& weights, size_t first, size_t count, float* buffer) {
    if (weights.number == Number::float32) return static_cast<const float*>(weights.numbers) + first;
    const uint16_t* const words = static_cast<const uint16_t*>(weights.numbers) + first;
    (weights.number == Number::float16 ? from_float16 : from_bfloat16)(words, count, buffer);
    return buffer;
}

/// Calls work(first, last) for some rows after the others, on several threads.
void by_rows(size_t rows, size_t columns, size_t threads, const std::function<void(size_t, size_t)>& work) {
    const size_t some = std::max<size_t>(1, kTask / std::max<size_t>(1, columns));
    const uint64_t tasks = (rows + some - 1) / some;
    run_tasks(tasks, worker_count(threads, tasks), [&](size_t, uint64_t task) noexcept -> const char* {
        work(task * some, std::min(rows, (task + 1) * some));
        return nullptr;
    });
}

/// Calls work(x, c, count) for the columns from c on of some rows after the others, x being float32.
template <class Work>
void by_floats(const Weights& weights, size_t row, const Work& work) {
    float buffer[kAtOnce];
    for (size_t c = 0; c < weights.columns; c += kAtOnce) {
        const size_t count = std::min(kAtOnce, weights.columns - c);
        work(floats(weights, row * weights.columns + c, count, buffer), c, count);
    }
}

SLIMRUN_CLONES
void extremes_of(const float* x, size_t count, int32_t threshold, int32_t* normal, int32_t* largest) {
    int32_t most = *largest, most_normal = *normal;
    for (size_t i = 0; i < count; ++i) {  // magnitudes are in the order of their bits
        int32_t bits;
        std::memcpy(&bits, x + i, sizeof bits);
        bits &= kMagnitude;
        most = bits > most ? bits : most;
        bits = bits <= threshold ? bits : 0;
        most_normal = bits > most_normal ? bits : most_normal;
    }
    *normal = most_normal;
    *largest = most;
}

/// Writes the bits of the magnitudes that are not below `least` to `to`, which has room for all; returns how
/// many.
SLIMRUN_CLONES
size_t large_of(const float* x, size_t count, int32_t least, int32_t* to) {
    size_t found = 0;
    for (size_t i = 0; i < count; i += kLanes) {
        const size_t some = count - i < kLanes ? count - i : kLanes;
        int32_t bits[kLanes] = {};
        std::memcpy(bits, x + i, some * sizeof *x);
        int32_t most = 0;
        for (int32_t& one : bits) {
            one &= kMagnitude;
            most = one > most ? one : most;
        }
        if (most < least) continue;  // as is usual
        for (const int32_t one : bits) {
            to[found] = one;
            found += one >= least;
        }
    }
    return found;
}

SLIMRUN_CLONES
void round_to(const float* x, size_t count, float step, float low, float high, int8_t* out) {
    for (size_t i = 0; i < count; ++i) {
        float v = x[i] / step;
        v = v > low ? v : low;  // whole numbers: what is rounded afterwards stays within them
        v = v < high ? v : high;
        out[i] = static_cast<int8_t>(static_cast<int32_t>((v + kRound) - kRound));
    }
}

/// count is a multiple of kLanes.
SLIMRUN_CLONES
uint32_t errors_of(const float* x, const int8_t* q, size_t count, float step, float limit, float* noise,
                   float* signal) {
    uint32_t cut[kLanes] = {};
    for (size_t i = 0; i < count; i += kLanes)
        for (size_t lane = 0; lane < kLanes; ++lane) {
            const int32_t value = q[i + lane];
            const float error = static_cast<float>(value) * step - x[i + lane];
            noise[lane] += error * error;
            signal[lane] += x[i + lane] * x[i + lane];
            const bool beyond = (error < 0 ? -error : error) > limit;
            cut[lane] += ((value >= 127) | (value <= -127)) & beyond;
        }
    uint32_t all = 0;
    for (uint32_t one : cut) all += one;
    return all;
}

SLIMRUN_CLONES
int32_t sum_of(const int8_t* values, size_t count) {
    int32_t sum = 0;
    for (size_t i = 0; i < count; ++i) sum += values[i];
    return sum;
}

}  // namespace

void extremes(const Weights& weights, float threshold, float* normal, float* largest, size_t threads) {
    const int32_t bits = static_cast<int32_t>(bits_of(threshold));
    by_rows(weights.rows, weights.columns, threads, [&](size_t first, size_t last) {
        for (size_t row = first; row < last; ++row) {
            int32_t usual = 0, most = 0;
            by_floats(weights, row, [&](const float* x, size_t, size_t count) {
                extremes_of(x, count, bits, &usual, &most);
            });
            normal[row] = number_of(static_cast<uint32_t>(usual));
            largest[row] = number_of(static_cast<uint32_t>(most));
        }
    });
}

float select(const Weights& weights, size_t count, float guess, size_t threads) {
    const int32_t least = static_cast<int32_t>(bits_of(guess));
    std::vector<std::vector<int32_t>> of_row(weights.rows);
    by_rows(weights.rows, weights.columns, threads, [&](size_t first, size_t last) {
        int32_t some[kAtOnce + kLanes];
        for (size_t row = first; row < last; ++row)
            by_floats(weights, row, [&](const float* x, size_t, size_t columns) {
                const size_t found = large_of(x, columns, least, some);
                of_row[row].insert(of_row[row].end(), some, some + found);
            });
    });
    std::vector<int32_t> large;
    for (const std::vector<int32_t>& some : of_row) large.insert(large.end(), some.begin(), some.end());
    if (large.size() < count) return -1;
    const auto wanted = large.begin() + static_cast<ptrdiff_t>(count - 1);
    std::nth_element(large.begin(), wanted, large.end(), std::greater<int32_t>());
    return number_of(static_cast<uint32_t>(*wanted));
}

void round(const Weights& weights, const float* steps, int low, int high, int8_t* out, size_t threads) {
    by_rows(weights.rows, weights.columns, threads, [&](size_t first, size_t last) {
        for (size_t row = first; row < last; ++row)
            by_floats(weights, row, [&](const float* x, size_t c, size_t count) {
                round_to(x, count, steps[row], static_cast<float>(low), static_cast<float>(high),
                         out + row * weights.columns + c);
            });
    });
}

void errors(const Weights& weights, const float* steps, const int8_t* values, float share, double* noise,
            double* signal, uint32_t* cut, size_t threads) {
    by_rows(weights.rows, weights.columns, threads, [&](size_t first, size_t last) {
        for (size_t row = first; row < last; ++row) {
            const float step = steps[row];
            noise[row] = signal[row] = 0;
            cut[row] = 0;
            by_floats(weights, row, [&](const float* x, size_t c, size_t count) {
                float noises[kLanes] = {}, signals[kLanes] = {}, rest_x[kLanes] = {};
                int8_t rest_q[kLanes] = {};
                const int8_t* const q = values + row * weights.columns + c;
                const size_t whole = count / kLanes * kLanes;
                cut[row] += errors_of(x, q, whole, step, share * step, noises, signals);
                std::copy(x + whole, x + count, rest_x);  // zeros on zero add nothing
                std::copy(q + whole, q + count, rest_q);
                cut[row] += errors_of(rest_x, rest_q, kLanes, step, share * step, noises, signals);
                for (size_t lane = 0; lane < kLanes; ++lane) {
                    noise[row] += noises[lane];
                    signal[row] += signals[lane];
                }
            });
        }
    });
}

void row_sums(const int8_t* values, size_t rows, size_t columns, int32_t* sums, size_t threads) {
    by_rows(rows, columns, threads, [&](size_t first, size_t last) {
        for (size_t row = first; row < last; ++row) sums[row] = sum_of(values + row * columns, columns);
    });
}

}  // namespace slimrun
