#include "int8_product.hpp"

#include <algorithm>
#include <memory>
#include <new>

#include "int8.hpp"
#include "int8_tiles.hpp"
#include "threads.hpp"

namespace slimrun {
namespace {

constexpr size_t kBlockDepth = 768;  // at most, of a block of x,
constexpr size_t kBlockRows = 16;    // and its rows: 24 KiB as int16
constexpr size_t kPanel = 128;       // rows of w that a task takes: they stay in the L2 cache for all of x
constexpr size_t kWorthScan = 8;     // rows of x for which looking for small weights pays
constexpr uint64_t kWork = 1 << 23;  // products that are worth a thread
constexpr size_t kLine = 64;         // bytes of the cache
constexpr size_t kBatch = 32;        // rows of x that are made at a time

struct Free {
    void operator()(void* memory) const { ::operator delete(memory, std::align_val_t{kLine}); }
};

/// Numbers from the start of a cache line on: half of the loads would cross lines otherwise.
template <class T>
using Aligned = std::unique_ptr<T[], Free>;

template <class T>
Aligned<T> aligned(size_t count) {
    return Aligned<T>(static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t{kLine})));
}

/// x as the kernels take it: in blocks of depth, one after the other, each of all rows.
class Blocks {
  public:
    Blocks(size_t rows, size_t depth, bool narrow) : rows_(rows), depth_(depth) {
        count_ = (depth + kBlockDepth - 1) / kBlockDepth;
        high_ = count_ ? ((depth + count_ - 1) / count_ + kLine - 1) / kLine * kLine : 0;
        wide_ = aligned<int16_t>(count_ * rows * high_);
        if (narrow) narrow_ = aligned<uint8_t>(count_ * rows * high_);
    }

    size_t count() const { return count_; }

    void set(size_t row, const int8_t* x) {
        for (size_t block = 0; block < count_; ++block, x += high_) {
            const size_t deep = depth_of(block), at = place(block, row);
            int16_t* const wide = wide_.get() + at;
            for (size_t l = 0; l < deep; ++l) wide[l] = x[l];
            std::fill(wide + deep, wide + high_, int16_t{0});
            if (!narrow_) continue;
            uint8_t* const narrow = narrow_.get() + at;
            for (size_t l = 0; l < deep; ++l) narrow[l] = static_cast<uint8_t>(x[l] + kShift);
            std::fill(narrow + deep, narrow + high_, uint8_t{0});
        }
    }

    /// A block of x, from a row on, beside rows of w [columns, depth].
    Block beside(size_t block, size_t row, const int8_t* w, size_t columns) const {
        Block b{};
        b.wide = wide_.get() + place(block, row);
        b.narrow = narrow_ ? narrow_.get() + place(block, row) : nullptr;
        b.rows = std::min(kBlockRows, rows_ - row);
        b.stride = high_;
        b.w = w + block * high_;
        b.columns = columns;
        b.apart = depth_;
        b.depth = depth_of(block);
        b.more = block > 0;
        return b;
    }

  private:
    size_t place(size_t block, size_t row) const { return (block * rows_ + row) * high_; }
    size_t depth_of(size_t block) const { return std::min(high_, depth_ - std::min(depth_, block * high_)); }

    size_t rows_, depth_, count_, high_;
    Aligned<int16_t> wide_;
    Aligned<uint8_t> narrow_;
};

/// The product of x [rows, depth], a row of which make(row, int8_t*) writes, and w [columns, depth].
///
/// take(row, first, count, sums) gets the sums of some columns; both are called from several threads.
template <class Make, class Take>
void product(size_t rows, const Make& make, const int8_t* w, size_t columns, size_t depth, const Take& take,
             size_t threads, bool portable) {
    const bool narrow = !portable && multiplies_fast() && rows >= kWorthScan;
    const BlockProduct multiply_block = block_product(portable);
    const size_t panels = (columns + kPanel - 1) / kPanel, batches = (rows + kBatch - 1) / kBatch;
    const size_t workers = worker_count(threads, uint64_t{rows} * columns * depth / kWork);

    Blocks x(rows, depth, narrow);
    run_tasks(batches, workers, [&](size_t, uint64_t batch) -> const char* {
        const std::unique_ptr<int8_t[]> made(new int8_t[depth]);
        for (size_t row = batch * kBatch; row < std::min(rows, (batch + 1) * kBatch); ++row) {
            make(row, made.get());
            x.set(row, made.get());
        }
        return nullptr;
    });
    run_tasks(panels, workers, [&](size_t, uint64_t panel) -> const char* {
        const size_t first = panel * kPanel, count = std::min(kPanel, columns - first);
        uint8_t magnitudes[kPanel];
        int32_t row_sums[kPanel], sums[kBlockRows * kPanel] = {};
        if (narrow) scan(w + first * depth, count, depth, magnitudes, row_sums);
        for (size_t row = 0; row < rows; row += kBlockRows) {
            for (size_t block = 0; block < x.count(); ++block) {
                Block b = x.beside(block, row, w + first * depth, count);
                b.magnitudes = magnitudes;
                b.row_sums = row_sums;
                b.out = sums;
                b.out_apart = kPanel;
                multiply_block(b);
            }
            for (size_t i = row; i < std::min(rows, row + kBlockRows); ++i)
                take(i, first, count, sums + (i - row) * kPanel);
        }
        return nullptr;
    });
}

}  // namespace

void multiply(const int8_t* x, size_t rows, const int8_t* w, size_t columns, size_t depth, int32_t* out,
              size_t threads, bool portable) {
    const auto make = [=](size_t row, int8_t* to) { std::copy_n(x + row * depth, depth, to); };
    const auto take = [=](size_t row, size_t first, size_t count, const int32_t* sums) {
        std::copy_n(sums, count, out + row * columns + first);
    };
    product(rows, make, w, columns, depth, take, threads, portable);
}

void static_linear(const float* x, size_t rows, float scale, int32_t offset, const int8_t* w, size_t columns,
                   size_t depth, const int32_t* bias, const float* deq_scale, bool one_scale, float* out,
                   size_t threads) {
    const auto make = [=](size_t row, int8_t* to) { quantize(x + row * depth, depth, scale, offset, to); };
    const auto take = [=](size_t row, size_t first, size_t count, const int32_t* sums) {
        dequantize(sums, 1, count, bias + first, deq_scale + (one_scale ? 0 : first), one_scale,
                   out + row * columns + first);
    };
    product(rows, make, w, columns, depth, take, threads, false);
}

void dynamic_linear(const float* x, size_t rows, const int8_t* w, size_t columns, size_t depth,
                    const float* steps, bool one_step, const float* bias, float* out, size_t threads) {
    const std::unique_ptr<float[]> scales(new float[rows]);
    const auto make = [&](size_t row, int8_t* to) {
        scales[row] = token_scale(x + row * depth, depth);
        quantize(x + row * depth, depth, scales[row], 0, to);
    };
    const auto take = [&](size_t row, size_t first, size_t count, const int32_t* sums) {
        dequantize_token(sums, count, scales[row], steps + (one_step ? 0 : first), one_step,
                         bias ? bias + first : nullptr, out + row * columns + first);
    };
    product(rows, make, w, columns, depth, take, threads, false);
}

}  // namespace slimrun
