// AVX2: 64 lanes are two pairs of registers. A byte shuffle knows 16 bytes only, so a slot is turned into its
// entry by eight of them, and values, frequencies and starts are looked up by entry. Bytes are handed out to
// eight lanes at a time by a shuffle that a table holds for each of the 256 ways to need them.
#include "kernels.hpp"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

#define SLIMRUN_TARGET __attribute__((target("avx2,popcnt,bmi,lzcnt,sse4.2,crc32")))
#define SLIMRUN_INLINE SLIMRUN_TARGET __attribute__((always_inline)) inline

namespace slimrun {
namespace {

SLIMRUN_INLINE __m256i load_256(const void* from) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(from));
}
SLIMRUN_INLINE void store_256(void* to, __m256i value) {
    _mm256_storeu_si256(static_cast<__m256i*>(to), value);
}
SLIMRUN_INLINE __m256i broadcast_16(const uint8_t* table) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
}
SLIMRUN_INLINE __m128i two_eights(const uint8_t* first, const uint8_t* second) {
    const __m128i low = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(first));
    return _mm_castps_si128(_mm_loadh_pi(_mm_castsi128_ps(low), reinterpret_cast<const __m64*>(second)));
}

/// The bytes of the stream for 16 of the lanes, zero where none is needed.
SLIMRUN_INLINE __m128i expand_16(uint32_t lanes, const uint8_t*& stream) {
    const uint32_t first = lanes & 255, second = lanes >> 8 & 255;
    const uint8_t* const middle = stream + _mm_popcnt_u32(first);
    const __m128i bytes = two_eights(stream, middle);
    const __m128i order = two_eights(kExpansions.of[first], kExpansions.of[second]);
    stream = middle + _mm_popcnt_u32(second);
    return _mm_shuffle_epi8(bytes, _mm_add_epi8(order, _mm_set_epi64x(0x0808080808080808, 0)));
}

SLIMRUN_INLINE __m256i expand_32(uint32_t lanes, const uint8_t*& stream) {
    const __m128i first = expand_16(lanes & 0xFFFF, stream);
    return _mm256_inserti128_si256(_mm256_castsi128_si256(first), expand_16(lanes >> 16, stream), 1);
}

/// Tables in both halves of registers, or at least of memory that instructions take as it is.
struct Tables {
    SLIMRUN_TARGET void load(const Slots& slots) {
        for (size_t i = 0; i < kSteps; ++i) {
            change[i] = broadcast_16(slots.entry_change + 16 * i);
            below[i] = _mm256_set1_epi8(static_cast<char>(16 * i));
        }
        value = broadcast_16(slots.entry_value);
        twice = broadcast_16(slots.entry_twice);
        start = broadcast_16(slots.entry_start);
        escape = _mm256_set1_epi8(static_cast<char>(slots.escape));
    }

    static constexpr size_t kSteps = kTotal / 16;
    __m256i change[kSteps], below[kSteps], value, twice, start, escape;
};

/// Values, frequencies and biases of 32 lanes.
struct Found {
    __m256i value, twice, bias;
};

/// First the entries of the slots, 0 .. 127: a shuffle gives zero for a negative index and looks at the low
/// four bits of any other, so that the shuffles up to the slot's own sixteen count, and xor to its entry.
SLIMRUN_INLINE Found find(const Tables& tables, __m256i slot) {
    __m256i entry = _mm256_shuffle_epi8(tables.change[0], slot);
#pragma GCC unroll 8
    for (size_t i = 1; i < Tables::kSteps; ++i)
        entry = _mm256_xor_si256(
            entry, _mm256_shuffle_epi8(tables.change[i], _mm256_sub_epi8(slot, tables.below[i])));
    return {_mm256_shuffle_epi8(tables.value, entry), _mm256_shuffle_epi8(tables.twice, entry),
            _mm256_sub_epi8(slot, _mm256_shuffle_epi8(tables.start, entry))};
}

/// All bits of the bytes whose lane is in the set.
SLIMRUN_INLINE __m256i spread(uint32_t lanes) {
    const __m256i own_byte = _mm256_set_epi64x(0x0303030303030303, 0x0202020202020202, 0x0101010101010101, 0);
    const __m256i own_bit = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201u));
    const __m256i copies = _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int>(lanes)), own_byte);
    return _mm256_cmpeq_epi8(_mm256_and_si256(copies, own_bit), own_bit);
}

/// One step of 32 lanes. Returns which of them escape; their values are not right yet.
template <bool kExtras>
SLIMRUN_INLINE uint32_t half_step(const Tables* tables, uint32_t second, const uint8_t* levels,
                                  uint8_t* lane_low, uint8_t* lane_high, const uint8_t*& stream,
                                  uint8_t* values) {
    const __m256i even_bytes = _mm256_set1_epi16(0x00FF);
    const __m256i low = load_256(lane_low), high = load_256(lane_high);
    const __m256i slot = _mm256_and_si256(low, _mm256_set1_epi8(127));
    Found found = find(tables[0], slot);
    if (kExtras && second) {
        const Found other = find(tables[1], slot);
        const __m256i choose = spread(second);
        found = {_mm256_blendv_epi8(found.value, other.value, choose),
                 _mm256_blendv_epi8(found.twice, other.twice, choose),
                 _mm256_blendv_epi8(found.bias, other.bias, choose)};
    }
    // frequency * (x / 128) = (x - x % 128) * (512 * frequency) / 2^16
    const __m256i above = _mm256_xor_si256(low, slot);
    const __m256i even_x = _mm256_or_si256(_mm256_slli_epi16(high, 8), _mm256_and_si256(above, even_bytes));
    const __m256i odd_x = _mm256_or_si256(_mm256_srli_epi16(above, 8), _mm256_andnot_si256(even_bytes, high));
    const __m256i even = _mm256_add_epi16(_mm256_mulhi_epu16(even_x, _mm256_slli_epi16(found.twice, 8)),
                                          _mm256_and_si256(found.bias, even_bytes));
    const __m256i odd =
        _mm256_add_epi16(_mm256_mulhi_epu16(odd_x, _mm256_andnot_si256(even_bytes, found.twice)),
                         _mm256_srli_epi16(found.bias, 8));
    const __m256i h = _mm256_or_si256(_mm256_srli_epi16(even, 8), _mm256_andnot_si256(even_bytes, odd));
    const __m256i l = _mm256_or_si256(_mm256_slli_epi16(odd, 8), _mm256_and_si256(even, even_bytes));
    const __m256i empty = _mm256_cmpeq_epi8(h, _mm256_setzero_si256());
    const __m256i bytes = expand_32(static_cast<uint32_t>(_mm256_movemask_epi8(empty)), stream);
    store_256(lane_high, _mm256_blendv_epi8(h, l, empty));
    store_256(lane_low, _mm256_blendv_epi8(l, bytes, empty));

    const __m256i escapes = _mm256_cmpeq_epi8(found.value, tables->escape);
    if (kExtras && levels) found.value = _mm256_shuffle_epi8(broadcast_16(levels), found.value);
    store_256(values, found.value);
    return static_cast<uint32_t>(_mm256_movemask_epi8(escapes));
}

/// One step with its escapes left open; returns the lanes that escape.
template <bool kExtras>
SLIMRUN_INLINE uint64_t open_step(DecodeChain& chain, const Tables* tables, size_t number) {
    const uint64_t second = kExtras && chain.column_class ? chain.column_class[number] : 0;
    uint8_t* const values = chain.values + number * kLanes;
    uint8_t *const low = chain.lanes.low, *const high = chain.lanes.high;
    const uint8_t* stream = chain.stream;
    const uint64_t first_half =
        half_step<kExtras>(tables, static_cast<uint32_t>(second), chain.levels, low, high, stream, values);
    const uint64_t second_half = half_step<kExtras>(tables, static_cast<uint32_t>(second >> 32), chain.levels,
                                                    low + 32, high + 32, stream, values + 32);
    chain.stream = stream;
    if (chain.checked_end - chain.checked >= 32) {  // next to so much else the checksum costs little
        uint64_t crc = chain.crc;
        for (size_t i = 0; i < 32; i += 8) crc = _mm_crc32_u64(crc, load<uint64_t>(chain.checked + i));
        chain.crc = static_cast<uint32_t>(crc);
        chain.checked += 32;
    }
    return first_half | second_half << 32;
}

template <size_t kChains, bool kExtras>
SLIMRUN_TARGET void decode_chains(DecodeChain* const* chains, size_t steps) {
    constexpr size_t kAtOnce = 64;
    uint64_t escapes[kChains][kAtOnce];
    Tables tables[kChains][kMaxColumnClasses];
    for (size_t c = 0; c < kChains; ++c) {
        tables[c][0].load(chains[c]->slots[0]);
        tables[c][1].load(chains[c]->slots[chains[c]->column_class ? 1 : 0]);
    }
    while (steps > 0) {
        const size_t now = steps < kAtOnce ? steps : kAtOnce;
        for (size_t number = 0; number < now; ++number)
#pragma GCC unroll 3
            for (size_t c = 0; c < kChains; ++c)
                escapes[c][number] = open_step<kExtras>(*chains[c], tables[c], number);
        for (size_t c = 0; c < kChains; ++c) complete_steps(*chains[c], escapes[c], now);
        steps -= now;
    }
}

void decode(DecodeChain* const* chains, size_t count, size_t steps) {
    bool extras = false;
    for (size_t c = 0; c < count; ++c) extras = extras || chains[c]->column_class || chains[c]->levels;
    if (count == 3)
        return extras ? decode_chains<3, true>(chains, steps) : decode_chains<3, false>(chains, steps);
    if (count == 2)
        return extras ? decode_chains<2, true>(chains, steps) : decode_chains<2, false>(chains, steps);
    extras ? decode_chains<1, true>(chains, steps) : decode_chains<1, false>(chains, steps);
}

/// Entries of values by byte shuffles. Those of -16 .. 15 are looked up alone where all values are among
/// them.
struct EntryTable {
    SLIMRUN_TARGET explicit EntryTable(const EntryOf& entry_of) {
        const uint8_t* const entry = entry_of.entry;
        positive = broadcast_16(entry);
        negative = broadcast_16(entry + 240);
        for (size_t i = 0; i < 16; ++i) {
            const __m256i own = broadcast_16(entry + 16 * i);
            change[i] = i % 8 ? _mm256_xor_si256(own, broadcast_16(entry + 16 * (i - 1))) : own;
        }
    }

    SLIMRUN_INLINE __m256i of(__m256i values) const {
        const __m256i beyond = _mm256_or_si256(_mm256_cmpgt_epi8(values, _mm256_set1_epi8(15)),
                                               _mm256_cmpgt_epi8(_mm256_set1_epi8(-16), values));
        if (_mm256_testz_si256(beyond, beyond)) {
            const __m256i near_zero = _mm256_and_si256(values, _mm256_set1_epi8(15));
            return _mm256_blendv_epi8(_mm256_shuffle_epi8(positive, near_zero),
                                      _mm256_shuffle_epi8(negative, near_zero), values);
        }
        const __m256i place = _mm256_and_si256(values, _mm256_set1_epi8(127));
        return _mm256_blendv_epi8(half(change, place), half(change + 8, place), values);
    }

  private:
    /// As in find().
    SLIMRUN_INLINE static __m256i half(const __m256i* changes, __m256i place) {
        __m256i entry = _mm256_shuffle_epi8(changes[0], place);
#pragma GCC unroll 8
        for (int i = 1; i < 8; ++i) {
            const __m256i above = _mm256_sub_epi8(place, _mm256_set1_epi8(static_cast<char>(16 * i)));
            entry = _mm256_xor_si256(entry, _mm256_shuffle_epi8(changes[i], above));
        }
        return entry;
    }

    __m256i change[16], positive, negative;
};

/// Writes the chosen bytes of 16, in order, before `to`; what lies up to 8 bytes before them is lost.
SLIMRUN_INLINE uint8_t* put_before_16(uint8_t* to, uint32_t chosen, __m128i bytes) {
    const uint32_t first = chosen & 255, second = chosen >> 8 & 255;
    const __m128i order = two_eights(kCompactions.of[first], kCompactions.of[second]);
    const __m128i packed =
        _mm_shuffle_epi8(bytes, _mm_add_epi8(order, _mm_set_epi64x(0x0808080808080808, 0)));
    _mm_storeh_pd(reinterpret_cast<double*>(to - 8), _mm_castsi128_pd(packed));
    to -= _mm_popcnt_u32(second);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to - 8), packed);
    return to - _mm_popcnt_u32(first);
}

SLIMRUN_INLINE uint8_t* put_before_32(uint8_t* to, uint32_t chosen, __m256i bytes) {
    to = put_before_16(to, chosen >> 16, _mm256_extracti128_si256(bytes, 1));
    return put_before_16(to, chosen & 0xFFFF, _mm256_castsi256_si128(bytes));
}

/// Codes in both halves of registers.
struct CodeTable {
    SLIMRUN_TARGET void load(const Codes& codes) {
        frequency = broadcast_16(codes.frequency);
        start = broadcast_16(codes.start);
        reciprocal_low = broadcast_16(codes.reciprocal_low);
        reciprocal_high = broadcast_16(codes.reciprocal_high);
    }

    __m256i frequency, start, reciprocal_low, reciprocal_high;
};

/// A code of each of 32 lanes.
SLIMRUN_INLINE CodeTable look_up(const CodeTable& codes, __m256i entry) {
    return {_mm256_shuffle_epi8(codes.frequency, entry), _mm256_shuffle_epi8(codes.start, entry),
            _mm256_shuffle_epi8(codes.reciprocal_low, entry),
            _mm256_shuffle_epi8(codes.reciprocal_high, entry)};
}

SLIMRUN_INLINE CodeTable choose_codes(const CodeTable& one, const CodeTable& other, __m256i choose) {
    return {_mm256_blendv_epi8(one.frequency, other.frequency, choose),
            _mm256_blendv_epi8(one.start, other.start, choose),
            _mm256_blendv_epi8(one.reciprocal_low, other.reciprocal_low, choose),
            _mm256_blendv_epi8(one.reciprocal_high, other.reciprocal_high, choose)};
}

/// encode_lane() on 16 lanes as 16-bit words.
SLIMRUN_INLINE __m256i encode_words(__m256i x, __m256i frequency, __m256i start, __m256i reciprocal) {
    const __m256i quotient = _mm256_mulhi_epu16(x, reciprocal);
    const __m256i rest = _mm256_sub_epi16(x, _mm256_mullo_epi16(quotient, frequency));
    const __m256i y =
        _mm256_add_epi16(_mm256_add_epi16(_mm256_slli_epi16(quotient, kProbabilityBits), rest), start);
    const __m256i enough = _mm256_cmpgt_epi16(frequency, rest);  // both are below 2^15
    const __m256i more = _mm256_sub_epi16(_mm256_set1_epi16(kTotal), frequency);
    return _mm256_add_epi16(y, _mm256_andnot_si256(enough, more));
}

/// One step of 32 lanes.
SLIMRUN_INLINE void encode_half(EncodeChain& chain, const EntryTable& entries, const CodeTable* codes,
                                uint32_t second, const uint8_t* values, uint8_t* lane_low,
                                uint8_t* lane_high) {
    const __m256i value = load_256(values), entry = entries.of(value);
    const __m256i escapes = _mm256_cmpeq_epi8(entry, _mm256_set1_epi8(kEscape));
    if (!_mm256_testz_si256(escapes, escapes))
        chain.escaped =
            put_before_32(chain.escaped, static_cast<uint32_t>(_mm256_movemask_epi8(escapes)), value);
    CodeTable code = look_up(codes[0], entry);
    if (second) code = choose_codes(code, look_up(codes[1], entry), spread(second));
    const __m256i low = load_256(lane_low), high = load_256(lane_high);
    // x >= 512 * frequency; the maximum of two bytes is the first if that is not below the other
    const __m256i full =
        _mm256_cmpeq_epi8(_mm256_max_epu8(high, _mm256_add_epi8(code.frequency, code.frequency)), high);
    chain.stream = put_before_32(chain.stream, static_cast<uint32_t>(_mm256_movemask_epi8(full)), low);
    const __m256i l = _mm256_blendv_epi8(low, high, full), h = _mm256_andnot_si256(full, high);

    const __m256i even_bytes = _mm256_set1_epi16(0x00FF);
    const __m256i even =
        encode_words(_mm256_or_si256(_mm256_slli_epi16(h, 8), _mm256_and_si256(l, even_bytes)),
                     _mm256_and_si256(code.frequency, even_bytes), _mm256_and_si256(code.start, even_bytes),
                     _mm256_or_si256(_mm256_slli_epi16(code.reciprocal_high, 8),
                                     _mm256_and_si256(code.reciprocal_low, even_bytes)));
    const __m256i odd =
        encode_words(_mm256_or_si256(_mm256_srli_epi16(l, 8), _mm256_andnot_si256(even_bytes, h)),
                     _mm256_srli_epi16(code.frequency, 8), _mm256_srli_epi16(code.start, 8),
                     _mm256_or_si256(_mm256_srli_epi16(code.reciprocal_low, 8),
                                     _mm256_andnot_si256(even_bytes, code.reciprocal_high)));
    store_256(lane_high, _mm256_or_si256(_mm256_srli_epi16(even, 8), _mm256_andnot_si256(even_bytes, odd)));
    store_256(lane_low, _mm256_or_si256(_mm256_slli_epi16(odd, 8), _mm256_and_si256(even, even_bytes)));
}

SLIMRUN_TARGET void encode_chain(EncodeChain& chain, size_t steps) {
    const EntryTable entries(*chain.entry_of);
    CodeTable codes[kMaxColumnClasses];
    codes[0].load(chain.codes[0]);
    codes[1].load(chain.codes[chain.column_class ? 1 : 0]);
    for (; steps > 0; --steps) {
        chain.values -= kLanes;
        const uint64_t second = chain.column_class ? *--chain.column_class : 0;
        encode_half(chain, entries, codes, static_cast<uint32_t>(second >> 32), chain.values + 32,
                    chain.lanes.low + 32, chain.lanes.high + 32);
        encode_half(chain, entries, codes, static_cast<uint32_t>(second), chain.values, chain.lanes.low,
                    chain.lanes.high);
    }
}

void encode(EncodeChain* const* chains, size_t count, size_t steps) {
    for (size_t c = 0; c < count; ++c) encode_chain(*chains[c], steps);
}

/// The entries of up to 255 registers of values, of which each is then counted by bytes that cannot overflow.
SLIMRUN_TARGET void count_entries(const EntryOf& entry_of, const uint8_t* const* runs, size_t number,
                                  size_t n, uint64_t* counts) {
    constexpr size_t kAtOnce = 255;
    const EntryTable table(entry_of);
    const __m256i zero = _mm256_setzero_si256();
    __m256i entries[kAtOnce];
    for (size_t run = 0; run < number; ++run) {
        size_t i = 0;
        while (i + 32 <= n) {
            size_t filled = 0;
            for (; filled < kAtOnce && i + 32 <= n; ++filled, i += 32)
                entries[filled] = table.of(load_256(runs[run] + i));
            for (size_t e = 0; e < kEntries; ++e) {
                const __m256i own = _mm256_set1_epi8(static_cast<char>(e));
                __m256i found = zero;
                for (size_t j = 0; j < filled; ++j)
                    found = _mm256_sub_epi8(found, _mm256_cmpeq_epi8(entries[j], own));
                const __m256i sums = _mm256_sad_epu8(found, zero);
                const __m128i pair =
                    _mm_add_epi64(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
                counts[e] += static_cast<uint64_t>(_mm_cvtsi128_si64(pair) + _mm_extract_epi64(pair, 1));
            }
        }
        for (; i < n; ++i) ++counts[entry_of.entry[runs[run][i]]];
    }
}

SLIMRUN_TARGET uint64_t sum_magnitudes(const uint8_t* values, size_t n) {
    __m256i sum = _mm256_setzero_si256();
    size_t i = 0;
    for (; i + 32 <= n; i += 32)
        sum = _mm256_add_epi64(
            sum, _mm256_sad_epu8(_mm256_abs_epi8(load_256(values + i)), _mm256_setzero_si256()));
    uint64_t parts[4];
    store_256(parts, sum);
    return parts[0] + parts[1] + parts[2] + parts[3] + magnitudes_scalar(values + i, n - i);
}

}  // namespace

const Kernels kAvx2Kernels = {"avx2", decode, decode_part_scalar, encode, count_entries, sum_magnitudes};

}  // namespace slimrun
#endif
