#include <cstring>

#include "kernels.hpp"
#include "low_bits.hpp"

namespace slimrun {
namespace {

/// The lanes as numbers, for as long as a kernel works on them.
struct Numbers {
    explicit Numbers(const Lanes& lanes) {
        for (size_t lane = 0; lane < kLanes; ++lane)
            x[lane] = static_cast<uint16_t>(lanes.low[lane] | lanes.high[lane] << 8);
    }
    void store(Lanes& lanes) const {
        for (size_t lane = 0; lane < kLanes; ++lane) {
            lanes.low[lane] = static_cast<uint8_t>(x[lane]);
            lanes.high[lane] = static_cast<uint8_t>(x[lane] >> 8);
        }
    }
    uint16_t x[kLanes];
};

/// What a step needs of a slot in one word, from the lowest byte up: frequency, bias, value, 1 for the
/// escape.
struct Words {
    explicit Words(const Slots& slots) {
        for (size_t i = 0; i < kTotal; ++i)
            of_slot[i] = uint32_t{slots.twice[i]} >> 1 | uint32_t{slots.bias[i]} << 8 |
                         uint32_t{slots.value[i]} << 16 | uint32_t{slots.value[i] == slots.escape} << 24;
    }
    uint32_t of_slot[kTotal];
};

// GCC would gather the words in vector registers one by one, which takes longer than storing them
#if defined(__GNUC__) && !defined(__clang__)
#define SLIMRUN_NO_VECTORS __attribute__((noinline, optimize("no-tree-vectorize")))
#else
#define SLIMRUN_NO_VECTORS
#endif

template <bool kColumns>
SLIMRUN_NO_VECTORS void look_up(const Words* words, uint64_t second, const uint8_t* slots, uint32_t* found) {
    for (size_t lane = 0; lane < kLanes; lane += 8)
        for (size_t i = lane; i < lane + 8; ++i)
            found[i] = words[kColumns ? second >> i & 1 : 0].of_slot[slots[i]];
}

/// One step; kColumns: with the tables of two column classes. Returns whether anything escaped. Each loop is
/// one instruction of a vector kernel and has no branch, as which lanes need a byte is a coin toss; compilers
/// vectorize all but the look-up and the one that hands out bytes.
template <bool kColumns>
bool decode_step(const Words* words, uint64_t second, uint16_t* __restrict x, const uint8_t*& stream,
                 uint8_t* __restrict values) {
    uint32_t found[kLanes];
    uint8_t slots[kLanes];
    for (size_t lane = 0; lane < kLanes; ++lane) slots[lane] = static_cast<uint8_t>(x[lane] % kTotal);
    look_up<kColumns>(words, second, slots, found);
    uint8_t empty[kLanes], fresh[kLanes];
    for (size_t lane = 0; lane < kLanes; ++lane)
        x[lane] = static_cast<uint16_t>((found[lane] & 255) * (x[lane] >> kProbabilityBits) +
                                        (found[lane] >> 8 & 255));
    for (size_t lane = 0; lane < kLanes; ++lane) empty[lane] = needs_byte(x[lane]);
    const uint8_t* at = stream;
    for (size_t lane = 0; lane < kLanes; lane += 8)
        for (size_t i = lane; i < lane + 8; ++i) {  // the compiler unrolls short loops
            fresh[i] = *at;
            at += empty[i];
        }
    stream = at;
    for (size_t lane = 0; lane < kLanes; ++lane) {
        const uint16_t mask = static_cast<uint16_t>(-empty[lane]);
        const uint16_t fed = static_cast<uint16_t>(x[lane] << 8 | fresh[lane]);
        x[lane] = static_cast<uint16_t>((x[lane] & ~mask) | (fed & mask));
    }
    uint32_t any = 0;
    for (size_t lane = 0; lane < kLanes; ++lane) values[lane] = static_cast<uint8_t>(found[lane] >> 16);
    for (size_t lane = 0; lane < kLanes; ++lane) any |= found[lane];
    return any >> 24;
}

size_t lowest_bit(uint64_t bits) {
#if defined(__GNUC__)
    return static_cast<size_t>(__builtin_ctzll(bits));
#else
    size_t number = 0;
    for (; !(bits & 1); bits >>= 1) ++number;
    return number;
#endif
}

void take_escaped(DecodeChain& chain) {
    const uint8_t escape = chain.slots->escape;  // the same in all column classes
    uint8_t* const values = chain.values;
    const uint8_t* escaped = chain.escaped;
    for (size_t first = 0; first < kLanes; first += 8) {
        uint64_t same =
            load<uint64_t>(values + first) ^ escape * 0x0101010101010101u;  // zero where it escapes
        same |= same >> 4;
        same |= same >> 2;
        same |= same >> 1;
        if ((same & 0x0101010101010101u) == 0x0101010101010101u && !chain.levels) continue;
        for (size_t lane = first; lane < first + 8; ++lane)
            if (values[lane] == escape)
                values[lane] = *escaped++;
            else if (chain.levels)
                values[lane] = chain.levels[values[lane]];
    }
    chain.escaped = escaped;
}

void decode_chain(DecodeChain& chain, size_t steps) {
    Numbers numbers(chain.lanes);
    const Words words[kMaxColumnClasses] = {Words(chain.slots[0]),
                                            Words(chain.slots[chain.column_class ? 1 : 0])};
    for (; steps > 0; --steps) {
        const uint8_t* stream = chain.stream;
        const bool escapes =
            chain.column_class
                ? decode_step<true>(words, *chain.column_class++, numbers.x, stream, chain.values)
                : decode_step<false>(words, 0, numbers.x, stream, chain.values);
        chain.stream = stream;
        if (escapes || chain.levels) take_escaped(chain);
        if (chain.low_bits) {
            add_low_bits(chain.planes, kLanes, chain.low_bits, chain.values);
            chain.planes += 8 * chain.low_bits;
        }
        chain.values += kLanes;
    }
    numbers.store(chain.lanes);
}

void encode_chain(EncodeChain& chain, size_t steps) {
    Numbers numbers(chain.lanes);
    uint8_t* stream = chain.stream;
    for (; steps > 0; --steps) {
        chain.values -= kLanes;
        const uint64_t second = chain.column_class ? *--chain.column_class : 0;
        for (size_t lane = kLanes; lane-- > 0;) {
            const Codes& codes = chain.codes[second >> lane & 1];
            const uint8_t entry = chain.entry_of->entry[chain.values[lane]];
            chain.escaped[-1] = chain.values[lane];  // stays only if the pointer moves: no branch
            chain.escaped -= entry == kEscape;
            uint32_t x = numbers.x[lane];
            const uint32_t full = x >= uint32_t{codes.frequency[entry]} << 9;
            stream[-1] = static_cast<uint8_t>(x);
            stream -= full;
            numbers.x[lane] = static_cast<uint16_t>(encode_lane(codes, x >> 8 * full, entry));
        }
    }
    chain.stream = stream;
    numbers.store(chain.lanes);
}

}  // namespace

void complete_steps(DecodeChain& chain, const uint64_t* escapes, size_t steps) {
    const uint8_t* escaped = chain.escaped;
    for (size_t number = 0; number < steps; ++number, chain.values += kLanes) {
        for (uint64_t left = escapes[number]; left; left &= left - 1)
            chain.values[lowest_bit(left)] = *escaped++;
        if (chain.low_bits) {
            add_low_bits(chain.planes, kLanes, chain.low_bits, chain.values);
            chain.planes += 8 * chain.low_bits;
        }
    }
    chain.escaped = escaped;
    if (chain.column_class) chain.column_class += steps;
}

void decode_scalar(DecodeChain* const* chains, size_t count, size_t steps) {
    for (size_t c = 0; c < count; ++c) decode_chain(*chains[c], steps);
}

void decode_part_scalar(DecodeChain& chain, size_t n) {
    const Slots& slots = *chain.slots;
    for (size_t lane = 0; lane < n; ++lane) {
        uint8_t value;
        uint32_t x = decode_lane(slots, chain.lanes.low[lane] | chain.lanes.high[lane] << 8, value);
        if (needs_byte(x)) x = x << 8 | *chain.stream++;
        *chain.values++ = value == slots.escape ? *chain.escaped++ : value;
        chain.lanes.low[lane] = static_cast<uint8_t>(x);
        chain.lanes.high[lane] = static_cast<uint8_t>(x >> 8);
    }
}

void encode_scalar(EncodeChain* const* chains, size_t count, size_t steps) {
    for (size_t c = 0; c < count; ++c) encode_chain(*chains[c], steps);
}

void count_scalar(const EntryOf& entry_of, const uint8_t* const* runs, size_t number, size_t n,
                  uint64_t* counts) {
    uint64_t tables[4][kEntries] = {};  // equal neighbours would wait for each other's increment
    for (size_t run = 0; run < number; ++run)
        for (size_t i = 0; i < n; ++i) ++tables[i % 4][entry_of.entry[runs[run][i]]];
    for (const auto& table : tables)
        for (size_t e = 0; e < kEntries; ++e) counts[e] += table[e];
}

uint64_t magnitudes_scalar(const uint8_t* values, size_t n) {
    uint64_t sum = 0;
    for (size_t i = 0; i < n; ++i) {
        const int value = static_cast<int8_t>(values[i]);
        sum += static_cast<uint64_t>(value < 0 ? -value : value);
    }
    return sum;
}

const Kernels kScalarKernels = {"scalar",      decode_scalar, decode_part_scalar,
                                encode_scalar, count_scalar,  magnitudes_scalar};

}  // namespace slimrun
