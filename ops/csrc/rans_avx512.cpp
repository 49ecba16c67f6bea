// AVX-512 with VBMI2: 64 lanes are two registers, their low and their high bytes. Tables are looked up by
// byte permutes, bytes are handed to the lanes that need them by a byte expansion.
#include "kernels.hpp"

#if defined(__x86_64__) && defined(__GNUC__)
// GCC's own intrinsics begin with registers that hold nothing on purpose
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#define SLIMRUN_TARGET \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,popcnt,bmi2,crc32,sse4.2")))
#define SLIMRUN_INLINE SLIMRUN_TARGET __attribute__((always_inline)) inline

namespace slimrun {
namespace {

constexpr int kOrAnd = 0xF8;     // ternary logic a | (b & c)
constexpr size_t kAhead = 1024;  // bytes that a line is fetched for writing before it is written

struct Masks {
    __m512i even, odd;  // the bytes of the even or the odd lanes, as 16-bit words
    __m512i top;        // the top bit of each byte
};

SLIMRUN_INLINE Masks masks() {
    return {_mm512_set1_epi16(0x00FF), _mm512_set1_epi16(static_cast<short>(0xFF00)),
            _mm512_set1_epi8(static_cast<char>(0x80))};
}

SLIMRUN_INLINE __m512i load_512(const void* from) { return _mm512_loadu_si512(from); }

/// A look-up in 128 bytes; the top bit of each index is ignored.
SLIMRUN_INLINE __m512i look_up(const uint8_t* table, __m512i index) {
    return _mm512_permutex2var_epi8(load_512(table), index, load_512(table + 64));
}

SLIMRUN_INLINE __m512i broadcast_16(const uint8_t* table) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
}

/// A chain in registers. kExtras: with column classes, levels or low bits.
template <bool kExtras>
struct Decoding {
    __m512i low, high, value_0, value_1, twice_0, twice_1, bias_0, bias_1, escape;
    const uint8_t *stream, *escaped, *checked;
    uint8_t* values;
    uint64_t crc;
    DecodeChain* chain;

    SLIMRUN_INLINE void load(DecodeChain* from) {
        chain = from;
        low = load_512(from->lanes.low);
        high = load_512(from->lanes.high);
        value_0 = load_512(from->slots->value);
        value_1 = load_512(from->slots->value + 64);
        twice_0 = load_512(from->slots->twice);
        twice_1 = load_512(from->slots->twice + 64);
        bias_0 = load_512(from->slots->bias);
        bias_1 = load_512(from->slots->bias + 64);
        escape = _mm512_set1_epi8(static_cast<char>(from->slots->escape));
        stream = from->stream;
        escaped = from->escaped;
        checked = from->checked;
        values = from->values;
        crc = from->crc;
    }

    SLIMRUN_INLINE void store(size_t steps) const {
        _mm512_storeu_si512(chain->lanes.low, low);
        _mm512_storeu_si512(chain->lanes.high, high);
        chain->stream = stream;
        chain->escaped = escaped;
        chain->checked = checked;
        chain->values = values;
        chain->crc = static_cast<uint32_t>(crc);
        if (chain->low_bits) chain->planes += steps * 8 * static_cast<size_t>(chain->low_bits);
        if (chain->column_class) chain->column_class += steps;
    }

    /// `lanes`: those that take part; all of them but in a last step.
    SLIMRUN_INLINE void step(const Masks& mask, size_t number, __mmask64 lanes = ~uint64_t{0}) {
        __m512i value = _mm512_permutex2var_epi8(value_0, low, value_1);
        __m512i twice = _mm512_permutex2var_epi8(twice_0, low, twice_1);
        __m512i bias = _mm512_permutex2var_epi8(bias_0, low, bias_1);
        if (kExtras && chain->column_class) {
            const Slots& other = chain->slots[1];
            const __mmask64 second = chain->column_class[number];
            value = _mm512_mask_mov_epi8(value, second, look_up(other.value, low));
            twice = _mm512_mask_mov_epi8(twice, second, look_up(other.twice, low));
            bias = _mm512_mask_mov_epi8(bias, second, look_up(other.bias, low));
        }
        // frequency * (x / 128) = (x - x % 128) * (512 * frequency) / 2^16
        const __m512i above = _mm512_and_si512(low, mask.top);
        const __m512i even_x =
            _mm512_ternarylogic_epi32(_mm512_slli_epi16(high, 8), above, mask.even, kOrAnd);
        const __m512i odd_x = _mm512_ternarylogic_epi32(_mm512_srli_epi16(above, 8), high, mask.odd, kOrAnd);
        const __m512i even = _mm512_add_epi16(_mm512_mulhi_epu16(even_x, _mm512_slli_epi16(twice, 8)),
                                              _mm512_and_si512(bias, mask.even));
        const __m512i odd = _mm512_add_epi16(_mm512_mulhi_epu16(odd_x, _mm512_and_si512(twice, mask.odd)),
                                             _mm512_srli_epi16(bias, 8));
        const __m512i h = _mm512_ternarylogic_epi32(_mm512_srli_epi16(even, 8), odd, mask.odd, kOrAnd);
        const __m512i l = _mm512_ternarylogic_epi32(_mm512_slli_epi16(odd, 8), even, mask.even, kOrAnd);
        const bool all = lanes == ~uint64_t{0};
        const __m512i was_high = high, was_low = low;
        const __mmask64 empty = all ? _mm512_testn_epi8_mask(h, h) : _mm512_mask_testn_epi8_mask(lanes, h, h);
        high = _mm512_mask_mov_epi8(h, empty, l);
        low = _mm512_mask_expand_epi8(l, empty, load_512(stream));
        stream += _mm_popcnt_u64(empty);
        if (!all) {
            high = _mm512_mask_mov_epi8(was_high, lanes, high);
            low = _mm512_mask_mov_epi8(was_low, lanes, low);
        }

        const __mmask64 escapes =
            all ? _mm512_cmpeq_epi8_mask(value, escape) : _mm512_mask_cmpeq_epi8_mask(lanes, value, escape);
        if (kExtras && chain->levels) value = _mm512_shuffle_epi8(broadcast_16(chain->levels), value);
        value = _mm512_mask_expand_epi8(value, escapes, load_512(escaped));
        escaped += _mm_popcnt_u64(escapes);
        if (kExtras && chain->low_bits) {
            const size_t low_bits = static_cast<size_t>(chain->low_bits);
            const uint8_t* const planes = chain->planes + number * 8 * low_bits;
            __m512i weight = _mm512_set1_epi8(1);
            for (size_t bit = 0; bit < low_bits; ++bit) {
                value = _mm512_mask_add_epi8(value, slimrun::load<uint64_t>(planes + 8 * bit), value, weight);
                weight = _mm512_add_epi8(weight, weight);
            }
        }
        __builtin_prefetch(values + kAhead, 1);
        _mm512_mask_storeu_epi8(values, lanes, value);
        values += kLanes;
        if (chain->checked_end - checked >= 32) {  // the scalar units have nothing else to do
            for (size_t i = 0; i < 32; i += 8) crc = _mm_crc32_u64(crc, slimrun::load<uint64_t>(checked + i));
            checked += 32;
        }
    }
};

/// Three chains hide each other's latency; their registers are named, as compilers keep no array in them.
template <size_t kChains, bool kExtras>
SLIMRUN_TARGET void decode_chains(DecodeChain* const* chains, size_t steps) {
    Decoding<kExtras> a, b, c;
    a.load(chains[0]);
    if constexpr (kChains > 1) b.load(chains[1]);
    if constexpr (kChains > 2) c.load(chains[2]);
    const Masks mask = masks();
    for (size_t number = 0; number < steps; ++number) {
        a.step(mask, number);
        if constexpr (kChains > 1) b.step(mask, number);
        if constexpr (kChains > 2) c.step(mask, number);
    }
    a.store(steps);
    if constexpr (kChains > 1) b.store(steps);
    if constexpr (kChains > 2) c.store(steps);
}

SLIMRUN_TARGET void decode_part(DecodeChain& chain, size_t n) {
    Decoding<false> part;
    part.load(&chain);
    part.step(masks(), 0, (uint64_t{1} << n) - 1);
    part.values -= kLanes - n;
    _mm512_storeu_si512(chain.lanes.low, part.low);
    _mm512_storeu_si512(chain.lanes.high, part.high);
    chain.stream = part.stream;
    chain.escaped = part.escaped;
    chain.values = part.values;
    chain.checked = part.checked;
    chain.crc = static_cast<uint32_t>(part.crc);
}

/// Writes the chosen bytes, in order, before `to`; returns where they begin.
SLIMRUN_INLINE uint8_t* put_before(uint8_t* to, __mmask64 chosen, __m512i bytes) {
    const uint64_t count = static_cast<uint64_t>(_mm_popcnt_u64(chosen));
    to -= count;
    _mm512_mask_storeu_epi8(to, _bzhi_u64(~uint64_t{0}, static_cast<unsigned>(count)),
                            _mm512_maskz_compress_epi8(chosen, bytes));
    return to;
}

/// encode_lane() on 32 lanes as 16-bit words.
SLIMRUN_INLINE __m512i encode_words(__m512i x, __m512i frequency, __m512i start, __m512i reciprocal) {
    const __m512i quotient = _mm512_mulhi_epu16(x, reciprocal);
    const __m512i rest = _mm512_sub_epi16(x, _mm512_mullo_epi16(quotient, frequency));
    const __mmask32 short_by_one = _mm512_cmpge_epu16_mask(rest, frequency);
    const __m512i y =
        _mm512_add_epi16(_mm512_add_epi16(_mm512_slli_epi16(quotient, kProbabilityBits), rest), start);
    return _mm512_mask_add_epi16(y, short_by_one, y, _mm512_sub_epi16(_mm512_set1_epi16(kTotal), frequency));
}

SLIMRUN_INLINE __m512i entries(const uint8_t* table, __m512i values) {
    return _mm512_mask_mov_epi8(look_up(table, values), _mm512_movepi8_mask(values),
                                look_up(table + 128, values));
}

struct Encoding {
    __m512i low, high;
    uint8_t *stream, *escaped;
    const uint8_t* values;
    EncodeChain* chain;

    SLIMRUN_INLINE void load(EncodeChain* from) {
        chain = from;
        low = load_512(from->lanes.low);
        high = load_512(from->lanes.high);
        stream = from->stream;
        escaped = from->escaped;
        values = from->values;
    }

    SLIMRUN_INLINE void store(size_t steps) const {
        _mm512_storeu_si512(chain->lanes.low, low);
        _mm512_storeu_si512(chain->lanes.high, high);
        chain->stream = stream;
        chain->escaped = escaped;
        chain->values = values;
        if (chain->column_class) chain->column_class -= steps;
    }

    SLIMRUN_INLINE void step(const Masks& mask, size_t number) {
        values -= kLanes;
        const __m512i value = load_512(values);
        const __m512i entry = entries(chain->entry_of->entry, value);
        escaped = put_before(escaped, _mm512_cmpeq_epi8_mask(entry, _mm512_set1_epi8(kEscape)), value);
        const Codes& codes = chain->codes[0];
        __m512i frequency = _mm512_shuffle_epi8(broadcast_16(codes.frequency), entry);
        __m512i start = _mm512_shuffle_epi8(broadcast_16(codes.start), entry);
        __m512i low_part = _mm512_shuffle_epi8(broadcast_16(codes.reciprocal_low), entry);
        __m512i high_part = _mm512_shuffle_epi8(broadcast_16(codes.reciprocal_high), entry);
        if (chain->column_class) {
            const Codes& other = chain->codes[1];
            const __mmask64 second = *(chain->column_class - 1 - number);
            frequency = _mm512_mask_shuffle_epi8(frequency, second, broadcast_16(other.frequency), entry);
            start = _mm512_mask_shuffle_epi8(start, second, broadcast_16(other.start), entry);
            low_part = _mm512_mask_shuffle_epi8(low_part, second, broadcast_16(other.reciprocal_low), entry);
            high_part =
                _mm512_mask_shuffle_epi8(high_part, second, broadcast_16(other.reciprocal_high), entry);
        }
        // x >= 512 * frequency
        const __mmask64 full = _mm512_cmpge_epu8_mask(high, _mm512_add_epi8(frequency, frequency));
        stream = put_before(stream, full, low);
        const __m512i l = _mm512_mask_mov_epi8(low, full, high);
        const __m512i h = _mm512_maskz_mov_epi8(~full, high);

        const __m512i even = encode_words(
            _mm512_ternarylogic_epi32(_mm512_slli_epi16(h, 8), l, mask.even, kOrAnd),
            _mm512_and_si512(frequency, mask.even), _mm512_and_si512(start, mask.even),
            _mm512_ternarylogic_epi32(_mm512_slli_epi16(high_part, 8), low_part, mask.even, kOrAnd));
        const __m512i odd = encode_words(
            _mm512_ternarylogic_epi32(_mm512_srli_epi16(l, 8), h, mask.odd, kOrAnd),
            _mm512_srli_epi16(frequency, 8), _mm512_srli_epi16(start, 8),
            _mm512_ternarylogic_epi32(_mm512_srli_epi16(low_part, 8), high_part, mask.odd, kOrAnd));
        high = _mm512_ternarylogic_epi32(_mm512_srli_epi16(even, 8), odd, mask.odd, kOrAnd);
        low = _mm512_ternarylogic_epi32(_mm512_slli_epi16(odd, 8), even, mask.even, kOrAnd);
    }
};

template <size_t kChains>
SLIMRUN_TARGET void encode_chains(EncodeChain* const* chains, size_t steps) {
    Encoding a, b, c;
    a.load(chains[0]);
    if constexpr (kChains > 1) b.load(chains[1]);
    if constexpr (kChains > 2) c.load(chains[2]);
    const Masks mask = masks();
    for (size_t number = 0; number < steps; ++number) {
        a.step(mask, number);
        if constexpr (kChains > 1) b.step(mask, number);
        if constexpr (kChains > 2) c.step(mask, number);
    }
    a.store(steps);
    if constexpr (kChains > 1) b.store(steps);
    if constexpr (kChains > 2) c.store(steps);
}

void decode(DecodeChain* const* chains, size_t count, size_t steps) {
    bool extras = false;
    for (size_t c = 0; c < count; ++c)
        extras = extras || chains[c]->column_class || chains[c]->levels || chains[c]->low_bits;
    if (extras) {
        if (count == 3) return decode_chains<3, true>(chains, steps);
        if (count == 2) return decode_chains<2, true>(chains, steps);
        return decode_chains<1, true>(chains, steps);
    }
    if (count == 3) return decode_chains<3, false>(chains, steps);
    if (count == 2) return decode_chains<2, false>(chains, steps);
    decode_chains<1, false>(chains, steps);
}

void encode(EncodeChain* const* chains, size_t count, size_t steps) {
    if (count == 3) return encode_chains<3>(chains, steps);
    if (count == 2) return encode_chains<2>(chains, steps);
    encode_chains<1>(chains, steps);
}

/// Counts how often each bit of 8-bit values is set, 64 values at a time, by carry-save adders (Mula, Kurz,
/// Lemire: Faster population counts using AVX2 instructions, 2017): bits of equal weight are summed where
/// they lie, and only every sixteenth sum is counted.
struct BitCounts {
    __m512i ones, twos, fours, eights;
    uint64_t counts[8];

    SLIMRUN_INLINE void clear() {
        ones = twos = fours = eights = _mm512_setzero_si512();
        for (uint64_t& count : counts) count = 0;
    }

    /// Leaves a + b + c as `sum` in a and returns the carry.
    SLIMRUN_INLINE static __m512i add(__m512i& a, __m512i b, __m512i c) {
        const __m512i carry = _mm512_ternarylogic_epi32(a, b, c, 0xE8);
        a = _mm512_ternarylogic_epi32(a, b, c, 0x96);
        return carry;
    }

    SLIMRUN_INLINE void count(__m512i bits, uint64_t weight) {
        for (int bit = 0; bit < 8; ++bit) {
            const __mmask64 set = _mm512_test_epi8_mask(bits, _mm512_set1_epi8(static_cast<char>(1 << bit)));
            counts[bit] += weight * static_cast<uint64_t>(_mm_popcnt_u64(set));
        }
    }

    SLIMRUN_INLINE __m512i add_four(const __m512i* v) {
        const __m512i first = add(ones, v[0], v[1]);
        const __m512i second = add(ones, v[2], v[3]);
        return add(twos, first, second);
    }
    SLIMRUN_INLINE __m512i add_eight(const __m512i* v) {
        const __m512i first = add_four(v);
        const __m512i second = add_four(v + 4);
        return add(fours, first, second);
    }
    SLIMRUN_INLINE void add_sixteen(const __m512i* v) {
        const __m512i first = add_eight(v);
        const __m512i second = add_eight(v + 8);
        count(add(eights, first, second), 16);
    }

    SLIMRUN_INLINE void finish() {
        count(ones, 1);
        count(twos, 2);
        count(fours, 4);
        count(eights, 8);
    }
};

SLIMRUN_TARGET void count_entries(const EntryOf& entry_of, const uint8_t* const* runs, size_t number,
                                  size_t n, uint64_t* counts) {
    constexpr size_t kAtOnce = 16;
    // bit e % 8 of the first or the second for entry e
    const __m512i first_bits =
        _mm512_broadcast_i32x4(_mm_set_epi64x(0, static_cast<long long>(0x8040201008040201u)));
    const __m512i second_bits =
        _mm512_broadcast_i32x4(_mm_set_epi64x(static_cast<long long>(0x8040201008040201u), 0));
    BitCounts first, second;
    first.clear();
    second.clear();
    __m512i a[kAtOnce], b[kAtOnce];
    size_t filled = 0;
    for (size_t run = 0; run < number; ++run) {
        const uint8_t* const next = runs[run + 1 < number ? run + 1 : run];  // anywhere in memory
        size_t i = 0;
        for (; i + kLanes <= n; i += kLanes) {
            _mm_prefetch(next + i, _MM_HINT_T0);
            const __m512i entry = entries(entry_of.entry, load_512(runs[run] + i));
            a[filled] = _mm512_shuffle_epi8(first_bits, entry);
            b[filled] = _mm512_shuffle_epi8(second_bits, entry);
            if (++filled < kAtOnce) continue;
            first.add_sixteen(a);
            second.add_sixteen(b);
            filled = 0;
        }
        for (; i < n; ++i) ++counts[entry_of.entry[runs[run][i]]];
    }
    for (size_t i = 0; i < filled; ++i) {
        first.count(a[i], 1);
        second.count(b[i], 1);
    }
    first.finish();
    second.finish();
    for (size_t bit = 0; bit < 8; ++bit) {
        counts[bit] += first.counts[bit];
        counts[8 + bit] += second.counts[bit];
    }
}

SLIMRUN_TARGET uint64_t sum_magnitudes(const uint8_t* values, size_t n) {
    __m512i sum = _mm512_setzero_si512();
    size_t i = 0;
    for (; i + kLanes <= n; i += kLanes)
        sum = _mm512_add_epi64(
            sum, _mm512_sad_epu8(_mm512_abs_epi8(load_512(values + i)), _mm512_setzero_si512()));
    return static_cast<uint64_t>(_mm512_reduce_add_epi64(sum)) + magnitudes_scalar(values + i, n - i);
}

}  // namespace

const Kernels kAvx512Kernels = {"avx512", decode, decode_part, encode, count_entries, sum_magnitudes};

}  // namespace slimrun
#endif
