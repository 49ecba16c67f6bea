// CRC-32C (Castagnoli): the checksum of a tile's packed bytes and of a container's header.
//
// Any change of up to 32 consecutive bits, so every wrong byte, is found for certain; other damage passes
// with probability 2^-32. "The lanes end in their start state" alone would miss 1.6 % of random damage.
// Polynomial 0x1EDC6F41 (here bit-reversed), start and final xor 0xFFFFFFFF: crc32c("123456789") =
// 0xE3069283.
#pragma once

#include "bytes.hpp"

namespace slimrun {

/// Continues `crc` (0 to begin) over `bytes`: crc32c(b, crc32c(a)) is the checksum of a followed by b. Takes
/// the CPU's own instruction where there is one (SSE 4.2), three times as fast as the tables.
uint32_t crc32c(Bytes bytes, uint32_t crc = 0) noexcept;

/// The same by tables alone, on any CPU.
uint32_t crc32c_portable(Bytes bytes, uint32_t crc = 0) noexcept;

}  // namespace slimrun
