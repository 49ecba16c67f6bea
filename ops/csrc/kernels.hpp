// Kernels: the loops over 64 lanes, once in portable C++ and once for each vector extension. All of them read
// and write the same bytes; rans.cpp calls the fastest one that the processor has.
//
// A chain is one sequence on its way: its lanes and its place in the stream. The steps of one chain wait for
// each other, so that kernels work on several chains in turn.
#pragma once

#include "model.hpp"

namespace slimrun {

inline constexpr size_t kLanes = kGroup;
inline constexpr size_t kMaxChains = 3;

/// x % 256 and x / 256 of each lane: two vector registers, and the way they are stored.
struct alignas(64) Lanes {
    uint8_t low[kLanes];
    uint8_t high[kLanes];
};

/// A table to decode with, by slot.
struct alignas(64) Slots {
    uint8_t value[kTotal];  // with zero low bits; with levels the entry
    uint8_t twice[kTotal];  // 2 * frequency
    uint8_t bias[kTotal];   // slot - start
    uint8_t escape;         // the value of the escape's slots, which no other slot has
    // For processors that look up 16 bytes at once: the same by entry, and the entries of the slots, from 16
    // on xor'ed with those 16 slots before.
    uint8_t entry_change[kTotal];
    uint8_t entry_value[kEntries];
    uint8_t entry_twice[kEntries];
    uint8_t entry_start[kEntries];
};

/// A table to encode with, by entry.
struct alignas(64) Codes {
    uint8_t frequency[kEntries];
    uint8_t start[kEntries];
    uint8_t reciprocal_low[kEntries];  // reciprocal = min(65535, 65536 / frequency), see divide()
    uint8_t reciprocal_high[kEntries];
};

/// The entry of each of the 256 values.
struct alignas(64) EntryOf {
    uint8_t entry[256];
};

/// Memory behind `stream` and `escaped` must be readable for 64 bytes a step. Both may run past their end on
/// damaged bytes, by no more than that: the caller looks where they stand afterwards.
struct DecodeChain {
    Lanes lanes;
    const Slots* slots = nullptr;            // one for each column class
    const uint64_t* column_class = nullptr;  // of the next 64 values, or none
    const uint8_t* levels = nullptr;         // value of each entry, or none
    const uint8_t* stream = nullptr;
    const uint8_t* escaped = nullptr;
    const uint8_t* planes = nullptr;  // low bits of the next 64 values
    int low_bits = 0;
    uint8_t* values = nullptr;
    const uint8_t* checked = nullptr;      // bytes before this one are in `crc`
    const uint8_t* checked_end = nullptr;  // kernels may move `checked` up to here
    uint32_t crc = 0;                      // CRC-32C state before its final complement
};

/// All pointers move backwards; `stream` and `escaped` need room for 64 bytes a step.
struct EncodeChain {
    Lanes lanes;
    const Codes* codes = nullptr;
    const uint64_t* column_class = nullptr;  // behind the one of the next 64 values, or none
    const EntryOf* entry_of = nullptr;
    const uint8_t* values = nullptr;
    uint8_t* stream = nullptr;
    uint8_t* escaped = nullptr;
};

using DecodeSteps = void(DecodeChain* const* chains, size_t count, size_t steps);
/// The first n < 64 lanes of a step. Leaves column_class, planes and levels alone: where they are in use,
/// sequences are whole steps.
using DecodePart = void(DecodeChain& chain, size_t n);
using EncodeSteps = void(EncodeChain* const* chains, size_t count, size_t steps);
/// Adds to counts[e] how many values have entry e, in so many runs of n values each.
using CountEntries = void(const EntryOf& entry_of, const uint8_t* const* runs, size_t number, size_t n,
                          uint64_t* counts);
/// The sum of the magnitudes of n int8 values.
using SumMagnitudes = uint64_t(const uint8_t* values, size_t n);

/// For processors that hand out bytes to eight lanes at a time: for each set of lanes that need one, which of
/// the next bytes each lane takes; the others take none (128, which byte shuffles turn into zero).
struct Expansions {
    constexpr Expansions() : of() {
        for (size_t set = 0; set < 256; ++set) {
            uint8_t next = 0;
            for (size_t lane = 0; lane < 8; ++lane) of[set][lane] = set >> lane & 1 ? next++ : uint8_t{128};
        }
    }
    uint8_t of[256][8];
};
inline constexpr Expansions kExpansions;

/// The other way: for each set of eight lanes the ones that are in it, in order, behind as many as are not.
struct Compactions {
    constexpr Compactions() : of() {
        for (size_t set = 0; set < 256; ++set) {
            size_t place = 8;
            for (size_t lane = 8; lane-- > 0;)
                if (set >> lane & 1) of[set][--place] = static_cast<uint8_t>(lane);
            while (place > 0) of[set][--place] = 128;
        }
    }
    uint8_t of[256][8];
};
inline constexpr Compactions kCompactions;

/// Finishes steps whose values are decoded but for escapes, the lanes of which are given for each, and low
/// bits: loops of unforeseeable length, which the next steps of a kernel would otherwise wait for. Moves all
/// of the chain on but lanes and stream.
void complete_steps(DecodeChain& chain, const uint64_t* escapes, size_t steps);

struct Kernels {
    const char* name;
    DecodeSteps* decode;
    DecodePart* decode_part;
    EncodeSteps* encode;
    CountEntries* count;
    SumMagnitudes* magnitudes;
};

DecodeSteps decode_scalar;
DecodePart decode_part_scalar;
EncodeSteps encode_scalar;
CountEntries count_scalar;
SumMagnitudes magnitudes_scalar;
extern const Kernels kScalarKernels;
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
extern const Kernels kNeonKernels;

/// The kernels in use: the best ones here, or those that the environment variable SLIMRUN_SIMD names (scalar,
/// avx2, avx512, neon). Throws std::invalid_argument if the processor does not have those.
const Kernels& kernels();

/// Room for the next byte of the stream is made with x = x << 8 when this is true.
inline bool needs_byte(uint32_t x) { return x < 256; }

/// One step of one lane, without taking bytes.
inline uint32_t decode_lane(const Slots& slots, uint32_t x, uint8_t& value) {
    const uint32_t slot = x % kTotal;
    value = slots.value[slot];
    return (slots.twice[slot] * (x >> kProbabilityBits) >> 1) + slots.bias[slot];
}

/// x / frequency * 128 + x % frequency + start. The reciprocal gives a quotient that is right or one too
/// small, as x < 2^16.
inline uint32_t encode_lane(const Codes& codes, uint32_t x, uint8_t entry) {
    const uint32_t frequency = codes.frequency[entry];
    const uint32_t reciprocal =
        codes.reciprocal_low[entry] | static_cast<uint32_t>(codes.reciprocal_high[entry]) << 8;
    const uint32_t quotient = x * reciprocal >> 16;
    const uint32_t rest = x - quotient * frequency;
    const uint32_t short_by_one = rest >= frequency;
    return quotient * kTotal + rest + (kTotal - frequency) * short_by_one + codes.start[entry];
}

}  // namespace slimrun
