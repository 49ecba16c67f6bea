#include "crc32c.hpp"

#include <array>

#if defined(__x86_64__) && defined(__GNUC__)
#define SLIMRUN_CRC_INSTRUCTION 1
#include <nmmintrin.h>
#endif

namespace slimrun {
namespace {

using Tables = std::array<std::array<uint32_t, 256>, 8>;

/// tables[k][b] is the effect of byte b seen k bytes ago, so that eight bytes cost eight look-ups and no
/// loop.
constexpr Tables make_tables() {
    Tables tables{};
    for (uint32_t byte = 0; byte < 256; ++byte) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; ++bit) crc = crc & 1 ? crc >> 1 ^ 0x82F63B78u : crc >> 1;
        tables[0][byte] = crc;
    }
    for (size_t k = 1; k < tables.size(); ++k)
        for (size_t byte = 0; byte < 256; ++byte)
            tables[k][byte] = tables[k - 1][byte] >> 8 ^ tables[0][tables[k - 1][byte] & 255];
    return tables;
}

constexpr Tables kTables = make_tables();

#ifdef SLIMRUN_CRC_INSTRUCTION
__attribute__((target("sse4.2"))) uint32_t crc32c_sse42(Bytes bytes, uint32_t crc) noexcept {
    uint64_t state = static_cast<uint32_t>(~crc);
    const uint8_t* at = bytes.data;
    for (; bytes.end() - at >= 8; at += 8) state = _mm_crc32_u64(state, load<uint64_t>(at));
    for (; at != bytes.end(); ++at) state = _mm_crc32_u8(static_cast<uint32_t>(state), *at);
    return ~static_cast<uint32_t>(state);
}
#endif

}  // namespace

uint32_t crc32c(Bytes bytes, uint32_t crc) noexcept {
#ifdef SLIMRUN_CRC_INSTRUCTION
    static const bool has_instruction = __builtin_cpu_supports("sse4.2");
    if (has_instruction) return crc32c_sse42(bytes, crc);
#endif
    return crc32c_portable(bytes, crc);
}

uint32_t crc32c_portable(Bytes bytes, uint32_t crc) noexcept {
    const auto& tables = kTables;
    const uint8_t* at = bytes.data;
    const uint8_t* const end = bytes.end();
    crc = ~crc;
    for (; end - at >= 8; at += 8) {
        const uint64_t word = load<uint64_t>(at) ^ crc;
        crc = tables[7][word & 255] ^ tables[6][word >> 8 & 255] ^ tables[5][word >> 16 & 255] ^
              tables[4][word >> 24 & 255] ^ tables[3][word >> 32 & 255] ^ tables[2][word >> 40 & 255] ^
              tables[1][word >> 48 & 255] ^ tables[0][word >> 56];
    }
    for (; at != end; ++at) crc = crc >> 8 ^ tables[0][(crc ^ *at) & 255];
    return ~crc;
}

}  // namespace slimrun
