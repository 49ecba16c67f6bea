// NEON, which every 64-bit Arm processor has: 64 lanes are two times four registers. Tables of 128 bytes are
// looked up by two instructions each; bytes are handed out to eight lanes at a time.
#include "kernels.hpp"

#if defined(__aarch64__)
#include <arm_neon.h>

namespace slimrun {
namespace {

constexpr size_t kWidth = 16;  // lanes in a register

struct Tables {
    explicit Tables(const uint8_t* table) {
        for (size_t i = 0; i < 4; ++i) {
            first.val[i] = vld1q_u8(table + kWidth * i);
            second.val[i] = vld1q_u8(table + 64 + kWidth * i);
        }
    }
    uint8x16x4_t first, second;
};

/// A look-up in 128 bytes; an index beyond a half leaves what is there.
inline uint8x16_t look_up(const uint8_t* table, uint8x16_t slot) {
    const Tables tables(table);
    return vqtbx4q_u8(vqtbl4q_u8(tables.first, slot), tables.second, vsubq_u8(slot, vdupq_n_u8(64)));
}

inline uint8x8_t own_bits() { return vcreate_u8(0x8040201008040201u); }

/// The set of the eight lanes whose bytes are not zero, as bits.
inline uint32_t set_of(uint8x8_t bytes) { return vaddv_u8(vand_u8(bytes, own_bits())); }

/// All bits of the lanes in the set.
inline uint8x16_t spread(uint64_t lanes) {
    const uint8x8_t first = vtst_u8(vdup_n_u8(static_cast<uint8_t>(lanes)), own_bits());
    const uint8x8_t second = vtst_u8(vdup_n_u8(static_cast<uint8_t>(lanes >> 8)), own_bits());
    return vcombine_u8(first, second);
}

/// The next bytes of the stream for the lanes that are empty, zero for the others.
inline uint8x8_t expand(uint8x8_t empty, const uint8_t*& stream) {
    const uint32_t set = set_of(empty);
    const uint8x8_t bytes = vtbl1_u8(vld1_u8(stream), vld1_u8(kExpansions.of[set]));
    stream += __builtin_popcount(set);
    return bytes;
}

/// frequency * (x / 128) + bias of eight lanes.
inline uint16x8_t next_x(uint8x8_t low, uint8x8_t high, uint8x8_t twice, uint8x8_t bias) {
    const uint16x8_t x = vorrq_u16(vmovl_u8(low), vshll_n_u8(high, 8));
    const uint16x8_t frequency = vshrq_n_u16(vmovl_u8(twice), 1);
    return vaddw_u8(vmulq_u16(frequency, vshrq_n_u16(x, kProbabilityBits)), bias);
}

/// One step of 16 lanes. Returns which of them escape; their values are not right yet.
inline uint64_t quarter_step(const DecodeChain& chain, uint64_t second, uint8_t* lane_low, uint8_t* lane_high,
                             const uint8_t*& stream, uint8_t* values) {
    const uint8x16_t low = vld1q_u8(lane_low), high = vld1q_u8(lane_high);
    const uint8x16_t slot = vandq_u8(low, vdupq_n_u8(127));
    uint8x16_t value = look_up(chain.slots->value, slot);
    uint8x16_t twice = look_up(chain.slots->twice, slot);
    uint8x16_t bias = look_up(chain.slots->bias, slot);
    if (chain.column_class) {
        const uint8x16_t choose = spread(second);
        value = vbslq_u8(choose, look_up(chain.slots[1].value, slot), value);
        twice = vbslq_u8(choose, look_up(chain.slots[1].twice, slot), twice);
        bias = vbslq_u8(choose, look_up(chain.slots[1].bias, slot), bias);
    }
    const uint16x8_t x0 = next_x(vget_low_u8(low), vget_low_u8(high), vget_low_u8(twice), vget_low_u8(bias));
    const uint16x8_t x1 =
        next_x(vget_high_u8(low), vget_high_u8(high), vget_high_u8(twice), vget_high_u8(bias));
    const uint8x16_t h = vcombine_u8(vshrn_n_u16(x0, 8), vshrn_n_u16(x1, 8));
    const uint8x16_t l = vcombine_u8(vmovn_u16(x0), vmovn_u16(x1));
    const uint8x16_t empty = vceqzq_u8(h);
    const uint8x8_t first_bytes = expand(vget_low_u8(empty), stream);
    const uint8x16_t bytes = vcombine_u8(first_bytes, expand(vget_high_u8(empty), stream));
    vst1q_u8(lane_high, vbslq_u8(empty, l, h));
    vst1q_u8(lane_low, vbslq_u8(empty, bytes, l));

    const uint8x16_t escapes = vceqq_u8(value, vdupq_n_u8(chain.slots->escape));
    if (chain.levels) value = vqtbl1q_u8(vld1q_u8(chain.levels), value);
    vst1q_u8(values, value);
    return set_of(vget_low_u8(escapes)) | set_of(vget_high_u8(escapes)) << 8;
}

uint64_t open_step(DecodeChain& chain, size_t number) {
    const uint64_t second = chain.column_class ? chain.column_class[number] : 0;
    uint8_t* const values = chain.values + number * kLanes;
    uint64_t escapes = 0;
    for (size_t lane = 0; lane < kLanes; lane += kWidth)
        escapes |= quarter_step(chain, second >> lane, chain.lanes.low + lane, chain.lanes.high + lane,
                                chain.stream, values + lane)
                   << lane;
    return escapes;
}

void decode(DecodeChain* const* chains, size_t count, size_t steps) {
    constexpr size_t kAtOnce = 64;
    uint64_t escapes[kMaxChains][kAtOnce];
    while (steps > 0) {
        const size_t now = steps < kAtOnce ? steps : kAtOnce;
        for (size_t number = 0; number < now; ++number)
            for (size_t c = 0; c < count; ++c) escapes[c][number] = open_step(*chains[c], number);
        for (size_t c = 0; c < count; ++c) complete_steps(*chains[c], escapes[c], now);
        steps -= now;
    }
}

}  // namespace

const Kernels kNeonKernels = {"neon",        decode,       decode_part_scalar,
                              encode_scalar, count_scalar, magnitudes_scalar};

}  // namespace slimrun
#endif
