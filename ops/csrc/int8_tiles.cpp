#include "int8_tiles.hpp"

#include <algorithm>
#include <cstring>

#include "clones.hpp"

#if defined(__x86_64__) && defined(__GNUC__)
#define SLIMRUN_AVX2_PRODUCT
#include <immintrin.h>
#endif

namespace slimrun {
namespace {

inline void put(int32_t& to, uint32_t sum, bool more, uint32_t start = 0) {
    to = static_cast<int32_t>((more ? static_cast<uint32_t>(to) : start) + sum);
}

SLIMRUN_CLONES
void multiply_block(const Block& b) {
    for (size_t j = 0; j < b.columns; ++j) {
        const int8_t* const w = b.w + j * b.apart;
        for (size_t i = 0; i < b.rows; ++i) {
            const int16_t* const x = b.wide + i * b.stride;
            uint32_t sum = 0;
            for (size_t l = 0; l < b.depth; ++l) sum += static_cast<uint32_t>(int32_t{x[l]} * w[l]);
            put(b.out[i * b.out_apart + j], sum, b.more);
        }
    }
}

#ifdef SLIMRUN_AVX2_PRODUCT

#define SLIMRUN_AVX2 __attribute__((target("avx2")))

constexpr size_t kTileRows = 4;  // of x, beside two rows of w: eight sums stay in registers
constexpr int kSmall = 32;       // 4 * 255 * kSmall < 2^15

SLIMRUN_AVX2 inline uint32_t sum(__m256i v) {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, _MM_SHUFFLE(1, 0, 3, 2)));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, _MM_SHUFFLE(2, 3, 0, 1)));
    return static_cast<uint32_t>(_mm_cvtsi128_si32(s));
}

template <class T>
SLIMRUN_AVX2 inline __m256i load(const T* from) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}

/// Weights of any size: sixteen products, added in pairs in int32.
struct Wide {
    static constexpr size_t kNumbers = 16;  // of a row, a step
    using X = int16_t;

    SLIMRUN_AVX2 static inline const X* x(const Block& b) { return b.wide; }
    SLIMRUN_AVX2 static inline uint32_t start(const Block&, size_t) { return 0; }

    template <size_t R, size_t C>
    SLIMRUN_AVX2 static inline void step(const X* x, size_t stride, const int8_t* w, size_t apart,
                                         __m256i (&sums)[R][C]) {
        __m256i rows[C];
#pragma GCC unroll 4
        for (size_t j = 0; j < C; ++j)
            rows[j] = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w + j * apart)));
#pragma GCC unroll 4
        for (size_t i = 0; i < R; ++i) {
            const __m256i one = load(x + i * stride);
#pragma GCC unroll 4
            for (size_t j = 0; j < C; ++j)
                sums[i][j] = _mm256_add_epi32(sums[i][j], _mm256_madd_epi16(one, rows[j]));
        }
    }
};

/// Weights of a magnitude of kSmall at most: 64 products, four of which are added in int16 first.
///
/// What the inputs are larger by is taken off with the sum of the whole row.
struct Narrow {
    static constexpr size_t kNumbers = 64;
    using X = uint8_t;

    SLIMRUN_AVX2 static inline const X* x(const Block& b) { return b.narrow; }
    SLIMRUN_AVX2 static inline uint32_t start(const Block& b, size_t j) {
        return uint32_t{0} - uint32_t{kShift} * static_cast<uint32_t>(b.row_sums[j]);
    }

    template <size_t R, size_t C>
    SLIMRUN_AVX2 static inline void step(const X* x, size_t stride, const int8_t* w, size_t apart,
                                         __m256i (&sums)[R][C]) {
        const __m256i ones = _mm256_set1_epi16(1);
        __m256i rows[2][C];
#pragma GCC unroll 4
        for (size_t j = 0; j < C; ++j)
            for (size_t half = 0; half < 2; ++half) rows[half][j] = load(w + j * apart + 32 * half);
#pragma GCC unroll 4
        for (size_t i = 0; i < R; ++i) {
            const __m256i one = load(x + i * stride), other = load(x + i * stride + 32);
#pragma GCC unroll 4
            for (size_t j = 0; j < C; ++j) {
                const __m256i fours = _mm256_add_epi16(_mm256_maddubs_epi16(one, rows[0][j]),
                                                       _mm256_maddubs_epi16(other, rows[1][j]));
                sums[i][j] = _mm256_add_epi32(sums[i][j], _mm256_madd_epi16(fours, ones));
            }
        }
    }
};

/// R rows of x, from row i on, beside C rows of w, from row j on.
template <class Kind, size_t R, size_t C>
SLIMRUN_AVX2 inline void tile(const Block& b, size_t i, size_t j) {
    const auto* const x = Kind::x(b) + i * b.stride;
    const int8_t* const w = b.w + j * b.apart;
    __m256i sums[R][C];
#pragma GCC unroll 4
    for (size_t r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (size_t c = 0; c < C; ++c) sums[r][c] = _mm256_setzero_si256();
    size_t l = 0;
    for (; l + Kind::kNumbers <= b.depth; l += Kind::kNumbers)
        Kind::template step<R, C>(x + l, b.stride, w + l, b.apart, sums);
    if (l < b.depth) {  // what is left of w, and zeros
        int8_t left[C * Kind::kNumbers] = {};
        for (size_t c = 0; c < C; ++c)
            std::memcpy(left + c * Kind::kNumbers, w + c * b.apart + l, b.depth - l);
        Kind::template step<R, C>(x + l, b.stride, left, Kind::kNumbers, sums);
    }
#pragma GCC unroll 4
    for (size_t r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (size_t c = 0; c < C; ++c)
            put(b.out[(i + r) * b.out_apart + j + c], sum(sums[r][c]), b.more, Kind::start(b, j + c));
}

/// All rows of x, kTileRows at a time, beside C rows of w.
template <class Kind, size_t C>
SLIMRUN_AVX2 void tiles(const Block& b, size_t j) {
    size_t i = 0;
    for (; i + kTileRows <= b.rows; i += kTileRows) tile<Kind, kTileRows, C>(b, i, j);
    for (; i < b.rows; ++i) tile<Kind, 1, C>(b, i, j);
}

SLIMRUN_AVX2 void multiply_block_avx2(const Block& b) {
    size_t j = 0;
    if (!b.narrow && b.rows < kTileRows)
        for (; j + 4 <= b.columns; j += 4) tiles<Wide, 4>(b, j);
    for (; j + 2 <= b.columns; j += 2) {
        if (b.narrow && std::max(b.magnitudes[j], b.magnitudes[j + 1]) <= kSmall)
            tiles<Narrow, 2>(b, j);
        else
            tiles<Wide, 2>(b, j);
    }
    for (; j < b.columns; ++j) tiles<Wide, 1>(b, j);
}

#endif

}  // namespace

SLIMRUN_CLONES
void scan(const int8_t* w, size_t columns, size_t depth, uint8_t* magnitudes, int32_t* row_sums) {
    for (size_t j = 0; j < columns; ++j, w += depth) {
        int8_t low = 0, high = 0;
        uint32_t sum = 0;
        for (size_t l = 0; l < depth; ++l) {
            low = std::min(low, w[l]);
            high = std::max(high, w[l]);
        }
        for (size_t l = 0; l < depth; ++l) sum += static_cast<uint32_t>(int32_t{w[l]});
        magnitudes[j] = static_cast<uint8_t>(std::max(-int{low}, int{high}));
        row_sums[j] = static_cast<int32_t>(sum);
    }
}

bool multiplies_fast() {
#ifdef SLIMRUN_AVX2_PRODUCT
    return __builtin_cpu_supports("avx2");
#else
    return false;
#endif
}

BlockProduct block_product(bool portable) {
#ifdef SLIMRUN_AVX2_PRODUCT
    if (!portable && multiplies_fast()) return multiply_block_avx2;
#endif
    return multiply_block;
}

}  // namespace slimrun
