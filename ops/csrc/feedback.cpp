#include "feedback.hpp"

#include <algorithm>
#include <cmath>
#include <thread>
#include <vector>

#include "clones.hpp"

namespace slimrun {
namespace {

SLIMRUN_CLONES
void feedback_rows(const FeedbackBlock& block, size_t first, size_t last, float* w, int8_t* q, float* e) {
    const size_t columns = block.columns;
    const float limit = block.limit;
    for (size_t r = first; r < last; ++r) {
        float* const row = w + r * columns;
        const float step = block.step[r], row_price = block.row_price[r];
        for (size_t j = 0; j < columns; ++j) {
            const float* const factor = block.factor + j * columns;
            const float x = row[j] / step, price = block.price[j] * row_price;
            const float low = std::min(std::max(std::floor(x), -limit), limit);
            const float high = std::min(low + 1.0f, limit);
            const float low_cost = (x - low) * (x - low) + price * block.bits[static_cast<int>(low) + 128];
            const float high_cost =
                (x - high) * (x - high) + price * block.bits[static_cast<int>(high) + 128];
            const float level = high_cost < low_cost ? high : low;
            const float error = (row[j] - level * step) / factor[j];
            q[r * columns + j] = static_cast<int8_t>(level);
            e[r * columns + j] = error;
            for (size_t l = j + 1; l < columns; ++l) row[l] -= error * factor[l];
        }
    }
}

}  // namespace

void feedback(const FeedbackBlock& block, float* w, int8_t* q, float* e, unsigned threads) {
    const size_t workers = std::max<size_t>(1, std::min<size_t>(threads, block.rows / 32));
    std::vector<std::thread> others;
    for (size_t i = 1; i < workers; ++i) {
        others.emplace_back(feedback_rows, std::cref(block), block.rows * i / workers,
                            block.rows * (i + 1) / workers, w, q, e);
    }
    feedback_rows(block, 0, block.rows / workers, w, q, e);
    for (std::thread& other : others) other.join();
}

}  // namespace slimrun
