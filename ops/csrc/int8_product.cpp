#include "int8_product.hpp"

#include <algorithm>
#include <cstring>
#include <memory>

#include "clones.hpp"
#include "threads.hpp"

#if defined(__x86_64__) && defined(__GNUC__)
#define SLIMRUN_AVX2_PRODUCT
#include <immintrin.h>
#endif

namespace slimrun {
namespace {

constexpr size_t kStep = 16;         // numbers of a row that are taken at once
constexpr size_t kBlockDepth = 768;  // at most, of a block of x,
constexpr size_t kBlockRows = 16;    // and its rows: 24 KiB as int16
constexpr size_t kTileRows = 4;      // of x, beside two rows of w: eight sums stay in registers
constexpr size_t kPanel = 128;       // rows of w that a task takes: they stay in the L2 cache for all of x
constexpr uint64_t kWork = 1 << 23;  // products that are worth a thread

size_t up(size_t count, size_t to) { return (count + to - 1) / to * to; }

/// The product of a block: rows of x as int16 [rows, stride], padded with zeros to whole steps, and `depth`
/// numbers of the rows first...last-1 of w, which lie `apart`; in the place of what out [rows, columns]
/// holds, or `more`: added to it.
struct Block {
    const int16_t* x;
    size_t rows, stride;
    const int8_t* w;
    size_t apart, depth, first, last;
    int32_t* out;
    size_t columns;
    bool more;
};

SLIMRUN_CLONES
void multiply_block(const Block& b) {
    for (size_t j = b.first; j < b.last; ++j) {
        const int8_t* const w = b.w + j * b.apart;
        for (size_t i = 0; i < b.rows; ++i) {
            const int16_t* const x = b.x + i * b.stride;
            uint32_t sum = 0;
            for (size_t l = 0; l < b.depth; ++l) sum += static_cast<uint32_t>(int32_t{x[l]} * w[l]);
            int32_t& to = b.out[i * b.columns + j];
            to = static_cast<int32_t>((b.more ? static_cast<uint32_t>(to) : 0) + sum);
        }
    }
}

#ifdef SLIMRUN_AVX2_PRODUCT

#define SLIMRUN_AVX2 __attribute__((target("avx2")))

/// Sixteen numbers of a row of w.
SLIMRUN_AVX2 inline __m256i widened(const int8_t* w) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w)));
}

SLIMRUN_AVX2 inline int32_t sum(__m256i v) {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, _MM_SHUFFLE(1, 0, 3, 2)));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, _MM_SHUFFLE(2, 3, 0, 1)));
    return _mm_cvtsi128_si32(s);
}

/// Adds the products of sixteen numbers of R rows of x, and of C rows of w.
template <size_t R, size_t C>
SLIMRUN_AVX2 inline void step(const int16_t* x, size_t stride, const int8_t* w, size_t apart,
                              __m256i (&sums)[R][C]) {
    __m256i rows[C];
#pragma GCC unroll 4
    for (size_t j = 0; j < C; ++j) rows[j] = widened(w + j * apart);
#pragma GCC unroll 4
    for (size_t i = 0; i < R; ++i) {
        const __m256i one = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + i * stride));
#pragma GCC unroll 4
        for (size_t j = 0; j < C; ++j)
            sums[i][j] = _mm256_add_epi32(sums[i][j], _mm256_madd_epi16(one, rows[j]));
    }
}

/// R rows of x beside C rows of w.
template <size_t R, size_t C>
SLIMRUN_AVX2 inline void tile(const int16_t* x, size_t stride, const int8_t* w, size_t apart, size_t depth,
                              int32_t* out, size_t columns, bool more) {
    __m256i sums[R][C];
#pragma GCC unroll 4
    for (size_t i = 0; i < R; ++i)
#pragma GCC unroll 4
        for (size_t j = 0; j < C; ++j) sums[i][j] = _mm256_setzero_si256();
    size_t l = 0;
    for (; l + kStep <= depth; l += kStep) step<R, C>(x + l, stride, w + l, apart, sums);
    if (l < depth) {  // what is left of w, and zeros
        int8_t left[C * kStep] = {};
        for (size_t j = 0; j < C; ++j) std::memcpy(left + j * kStep, w + j * apart + l, depth - l);
        step<R, C>(x + l, stride, left, kStep, sums);
    }
#pragma GCC unroll 4
    for (size_t i = 0; i < R; ++i)
#pragma GCC unroll 4
        for (size_t j = 0; j < C; ++j) {
            int32_t& to = out[i * columns + j];
            to = static_cast<int32_t>((more ? static_cast<uint32_t>(to) : 0) +
                                      static_cast<uint32_t>(sum(sums[i][j])));
        }
}

/// R rows of x at a time, from row i on, beside C rows of w, from row j on; returns the rows of x that are
/// done.
template <size_t R, size_t C>
SLIMRUN_AVX2 size_t tiles(const Block& b, size_t i, size_t j) {
    for (; i + R <= b.rows; i += R)
        tile<R, C>(b.x + i * b.stride, b.stride, b.w + j * b.apart, b.apart, b.depth,
                   b.out + i * b.columns + j, b.columns, b.more);
    return i;
}

SLIMRUN_AVX2 void multiply_block_avx2(const Block& b) {
    size_t j = b.first;
    if (b.rows < kTileRows)
        for (; j + 4 <= b.last; j += 4) tiles<1, 4>(b, 0, j);
    for (; j + 2 <= b.last; j += 2) tiles<1, 2>(b, tiles<kTileRows, 2>(b, 0, j), j);
    for (; j < b.last; ++j) tiles<1, 1>(b, 0, j);
}

#endif

using BlockProduct = void (*)(const Block&);

BlockProduct block_product(bool portable) {
#ifdef SLIMRUN_AVX2_PRODUCT
    if (!portable && multiplies_fast()) return multiply_block_avx2;
#endif
    return multiply_block;
}

}  // namespace

bool multiplies_fast() {
#ifdef SLIMRUN_AVX2_PRODUCT
    return __builtin_cpu_supports("avx2");
#else
    return false;
#endif
}

void multiply(const int8_t* x, size_t rows, const int8_t* w, size_t columns, size_t depth, int32_t* out,
              size_t threads, bool portable) {
    if (!depth) std::fill(out, out + rows * columns, 0);
    if (!rows || !columns || !depth) return;
    const BlockProduct product = block_product(portable);
    const size_t blocks = (depth + kBlockDepth - 1) / kBlockDepth;
    const size_t high = up((depth + blocks - 1) / blocks, kStep);  // of a block's rows, in numbers
    const std::unique_ptr<int16_t[]> wide(new int16_t[blocks * rows * high]);  // block after block
    for (size_t block = 0; block < blocks; ++block)
        for (size_t i = 0; i < rows; ++i) {
            const size_t at = std::min(block * high, depth), deep = std::min(high, depth - at);
            int16_t* const to = wide.get() + (block * rows + i) * high;
            std::copy_n(x + i * depth + at, deep, to);
            std::fill(to + deep, to + high, int16_t{0});
        }
    const size_t tasks = (columns + kPanel - 1) / kPanel;
    const size_t workers =
        worker_count(threads, std::min<uint64_t>(uint64_t{rows} * columns * depth / kWork, tasks));
    run_tasks(tasks, workers, [&](size_t, uint64_t task) -> const char* {
        const size_t first = task * kPanel, last = std::min(first + kPanel, columns);
        for (size_t block = 0; block * high < depth; ++block)
            for (size_t row = 0; row < rows; row += kBlockRows)
                product({wide.get() + (block * rows + row) * high, std::min(kBlockRows, rows - row), high,
                         w + block * high, depth, std::min(high, depth - block * high), first, last,
                         out + row * columns, columns, block > 0});
        return nullptr;
    });
}

}  // namespace slimrun
