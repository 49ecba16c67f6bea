#include "feedback.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "clones.hpp"
#include "threads.hpp"

namespace slimrun {
namespace {

constexpr size_t kLanes = 16;  // rows side by side: each waits for its column before, none for another
constexpr size_t kAtOnce = 4;  // columns that hear of earlier errors as sums that stay in registers
constexpr float kRound = 12582912.0f;  // 1.5 * 2^23, as in int8.cpp
constexpr size_t kAhead = 8;           // columns, a multiple of those, that then hear of each other's errors

using Lanes = float __attribute__((vector_size(kLanes * sizeof(float)), aligned(sizeof(float)), may_alias));

/// Rounds up to kLanes rows from `first` on. `w` and `e` [columns, kLanes] have them side by side, with room
/// for whole groups of kAtOnce columns; `shares` has, group after group, what these hear of each column
/// before.
SLIMRUN_CLONES
void feedback_rows(const FeedbackBlock& block, size_t first, const float* shares, float* __restrict w,
                   float* __restrict e, int8_t* __restrict q, float* __restrict errors) {
    const size_t columns = block.columns, rows = std::min(kLanes, block.rows - first);
    const float limit = block.limit;
    float step[kLanes], row_price[kLanes], bits[256];
    std::copy_n(block.bits, 256, bits);
    for (size_t i = 0; i < kLanes; ++i) {
        const size_t row = first + std::min(i, rows - 1);  // what is beyond the last is that one again
        step[i] = block.step[row];
        row_price[i] = block.row_price[row];
        for (size_t j = 0; j < columns; ++j) w[j * kLanes + i] = block.w[row * columns + j];
    }
    Lanes* const own = reinterpret_cast<Lanes*>(w);
    const Lanes* const error = reinterpret_cast<const Lanes*>(e);
    for (size_t start = 0; start < columns; start += kAhead) {
        const size_t stop = std::min(start + kAhead, columns);
        for (size_t j = start; j < stop; j += kAtOnce) {
            const float* share = shares + j * columns;
            Lanes a = own[j], b = own[j + 1], c = own[j + 2], d = own[j + 3];
            for (size_t from = 0; from < start; ++from, share += kAtOnce) {
                a -= error[from] * share[0];
                b -= error[from] * share[1];
                c -= error[from] * share[2];
                d -= error[from] * share[3];
            }
            own[j] = a, own[j + 1] = b, own[j + 2] = c, own[j + 3] = d;
        }
        for (size_t j = start; j < stop; ++j) {
            const float* const factor = block.factor + j * columns;
            float* const at = w + j * kLanes;
            float* const missed = e + j * kLanes;
            const float column_price = block.price[j], pivot = factor[j];
            for (size_t i = 0; i < kLanes; ++i) {
                const float x = at[i] / step[i], price = column_price * row_price[i];
                const float low = std::min(std::max(-limit, std::floor(x)), limit);
                const float high = std::min(low + 1.0f, limit);
                const float low_cost = (x - low) * (x - low) + price * bits[static_cast<int>(low) + 128];
                const float high_cost = (x - high) * (x - high) + price * bits[static_cast<int>(high) + 128];
                const float level = high_cost < low_cost ? high : low;
                missed[i] = (at[i] - level * step[i]) / pivot;
                at[i] = level;
            }
            for (size_t l = j + 1; l < stop; ++l) {
                for (size_t i = 0; i < kLanes; ++i) w[l * kLanes + i] -= missed[i] * factor[l];
            }
        }
    }
    for (size_t i = 0; i < rows; ++i) {
        const size_t at = (first + i) * columns;
        for (size_t j = 0; j < columns; ++j) {
            q[at + j] = static_cast<int8_t>(w[j * kLanes + i]);
            errors[at + j] = e[j * kLanes + i];
        }
    }
}

/// A row in another order, with the integers of its numbers and what these miss.
SLIMRUN_CLONES
void row_in_order(const float* w, const int32_t* order, size_t columns, float step, float limit,
                  float* __restrict exact, int8_t* __restrict plain, float* __restrict missed) {
    for (size_t j = 0; j < columns; ++j) exact[j] = w[order[j]];
    for (size_t j = 0; j < columns; ++j) {
        float level = exact[j] / step;
        level = level > -limit ? level : -limit;
        level = level < limit ? level : limit;
        level = (level + kRound) - kRound;
        plain[j] = static_cast<int8_t>(static_cast<int32_t>(level));
        missed[j] = exact[j] - level * step;
    }
}

/// Calls work(row) for all rows, some of them a task.
template <class Work>
void by_rows(size_t rows, unsigned threads, const Work& work) {
    const size_t tasks = (rows + kLanes - 1) / kLanes;
    run_tasks(tasks, worker_count(threads, tasks / 2), [&](size_t, uint64_t task) -> const char* {
        for (size_t row = task * kLanes; row < std::min(rows, (task + 1) * kLanes); ++row) work(row);
        return nullptr;
    });
}

/// The bits of each of `columns` levels, summed.
float row_bits(const int8_t* q, size_t columns, const float* bits) {
    float sums[kAtOnce] = {};
    for (size_t j = 0; j < columns; ++j) sums[j % kAtOnce] += bits[q[j] + 128];
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

}  // namespace

void feedback(const FeedbackBlock& block, int8_t* q, float* e, unsigned threads) {
    const size_t columns = (block.columns + kAtOnce - 1) / kAtOnce * kAtOnce;
    std::vector<float> shares(columns * block.columns);
    for (size_t j = 0; j < block.columns; ++j) {
        float* const own = shares.data() + j / kAtOnce * kAtOnce * block.columns + j % kAtOnce;
        for (size_t from = 0; from < j; ++from) own[from * kAtOnce] = block.factor[from * block.columns + j];
    }
    const size_t tasks = (block.rows + kLanes - 1) / kLanes, workers = worker_count(threads, tasks / 2);
    const size_t room = columns * kLanes;
    std::vector<float> rooms(workers * 2 * room);
    run_tasks(tasks, workers, [&](size_t worker, uint64_t task) -> const char* {
        float* const w = rooms.data() + worker * 2 * room;
        feedback_rows(block, task * kLanes, shares.data(), w, w + room, q, e);
        return nullptr;
    });
}

void in_order(const OrderedRows& of, const float* w, const float* step, float limit, float* exact,
              int8_t* plain, float* missed, unsigned threads) {
    by_rows(of.rows, threads, [&](size_t row) {
        const size_t at = row * of.columns;
        row_in_order(w + at, of.order, of.columns, step[row], limit, exact + at, plain + at, missed + at);
    });
}

void out_of_order(const OrderedRows& of, const int8_t* fed, const int8_t* plain, const bool* takes, int8_t* q,
                  unsigned threads) {
    by_rows(of.rows, threads, [&](size_t row) {
        const size_t at = row * of.columns;
        const int8_t* const from = (takes[row] ? fed : plain) + at;
        for (size_t j = 0; j < of.columns; ++j) q[at + of.order[j]] = from[j];
    });
}

void code_bits(const int8_t* q, size_t rows, size_t columns, const float* bits, float* sums,
               unsigned threads) {
    by_rows(rows, threads, [&](size_t row) { sums[row] = row_bits(q + row * columns, columns, bits); });
}

}  // namespace slimrun
