// rANS: one tile of int8 values <-> its packed bytes, with 64 interleaved lanes and one byte stream.
//
// A lane is a number x in [2^8, 2^16). The 128 slots x % 128 are shared out among the entries of a table by
// their frequencies, in table order; `start` is an entry's first slot. To decode one element from a lane:
//     slot = x % 128;  entry = the one that owns the slot
//     x = frequency * (x / 128) + slot - start
//     if x < 2^8: x = x * 256 + next byte of the stream           (one byte always suffices, as x >= 2 here)
// The encoder does the inverse on the elements from last to first and writes the stream from its end:
//     if x >= 512 * frequency: write x % 256, x = x / 256
//     x = x / frequency * 128 + x % frequency + start
//
// Element i of a sequence belongs to lane i % 64. One step decodes 64 neighbours, then the lanes that need a
// byte take one each, lane 0 first: with states and tables in vector registers that is a permute, a multiply
// and a byte expansion. Decoding element after element in order, as here, reads the very same bytes.
//
// A tile holds two sequences, decoded from the same lanes one after the other, each beginning at lane 0:
//   1. the escaped values, as entries of `rare`; where that escapes too, the high part is the next raw byte,
//   2. the n values of the tile, as entries of `common`; where it escapes, the value is the next escaped one.
// Every lane starts encoding at 2^8, so after decoding it must be back there and the stream used up exactly.
//
// Packed bytes of a tile, in this order:
//   uint32       how many values escape from `common`
//   uint8[64]    x % 256 of each lane before decoding
//   uint8[64]    x / 256 of each lane before decoding, never 0
//   stream       bytes that refill lanes, in the order in which they are taken
//   raw bytes    high parts that both tables lack, the first one last (so that no count of them is needed)
//   low bits     see low_bits.hpp
#pragma once

#include <vector>

#include "model.hpp"

namespace slimrun {

inline constexpr size_t kLanes = 64;
inline constexpr uint32_t kLaneStart = 1u << 8;
inline constexpr size_t kTileHeader = 4 + 2 * kLanes;

/// One of the 128 slots of a decoding table, four bytes in one word so that a step loads each lane's at once:
/// frequency, slot - start, the value with zero low bits, and 1 for the escape, from the lowest byte up.
using Slot = uint32_t;

/// How the encoder codes one of the 256 values. reciprocal turns the division by frequency into a
/// multiplication.
struct Code {
    uint32_t limit, reciprocal;
    uint8_t frequency, start;
    bool escapes;
};

struct Encoder {
    explicit Encoder(const Model& model);

    int low_bits;
    std::array<Code, 256> common, rare;  // by value, not by high part
};

struct Decoder {
    explicit Decoder(const Model& model);

    int low_bits;
    std::array<Slot, kTotal> common, rare;
};

/// The working memory of one thread, made once for all of its tiles.
struct Scratch {
    explicit Scratch(size_t tile_size);

    std::vector<uint8_t> escaped;  // the values that escape from `common`
    std::vector<uint8_t> raw;      // the high parts that escape from `rare` as well
    std::vector<uint8_t> stream;   // filled by the encoder from its end
};

/// Packs `n` values into at most n - 1 bytes at `to`. Returns the size, or 0 if it would not be smaller than
/// n.
size_t rans_encode(const Encoder& encoder, const uint8_t* values, size_t n, Scratch& scratch,
                   uint8_t* to) noexcept;

/// Unpacks `n` values. Returns nullptr, or what is wrong with the packed bytes; `values` is then undefined.
const char* rans_decode(const Decoder& decoder, Bytes packed, uint8_t* values, size_t n,
                        Scratch& scratch) noexcept;

}  // namespace slimrun
