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
// and a byte expansion. Decoding element after element in order reads the very same bytes.
//
// A tile of n values holds two sequences, decoded from the same lanes one after the other, each beginning at
// lane 0:
//   1. the escaped values, as entries of `rare`; where that escapes too, the value is the next raw byte,
//   2. the first n - 64 values of the tile (all n, if n < 64), as entries of `common`; where it escapes, the
//      value is the next escaped one.
// The last 64 values need no code. A lane must start encoding somewhere from 2^8 up, and where is free: lane
// i % 64 of each of them, element i, starts at 2^8 + zigzag(value), zigzag(0, -1, 1, -2, ..) = 0, 1, 2, 3, ..
// So this is what the lanes hold after decoding, and the stream is used up exactly. With n < 64 every lane
// starts at 2^8.
//
// Packed bytes of a tile, in this order:
//   uint24       how many values escape from `common`
//   uint24       how many of these escape from `rare`
//   uint8[64]    x % 256 of each lane before decoding
//   uint8[64]    x / 256 of each lane before decoding, never 0
//   stream       bytes that refill lanes, in the order in which they are taken
//   raw bytes    values that both tables lack, in order, their low bits zero
//   low bits     of the values that are coded, see low_bits.hpp
#pragma once

#include <memory>

#include "kernels.hpp"

namespace slimrun {

inline constexpr uint32_t kLaneStart = 1u << 8;
inline constexpr size_t kTileHeader = 6 + 2 * kLanes;

/// Where an element lies, as far as the model cares.
struct Position {
    size_t row = 0;
    size_t group = 0;  // of 64 columns, within the row
    size_t left = 0;   // groups from there to the end of the row
};

/// A model, made ready for coding. Keeps a reference to it.
class Coder {
  public:
    /// Throws what kernels() throws.
    explicit Coder(const Model& model);

    const Model& model() const { return model_; }
    /// Of element `at` of the array. An array without rows is one endless row.
    Position position(uint64_t at) const;
    /// The first element of the next row.
    Position next_row(const Position& at) const {
        return {at.row + 1, 0, static_cast<size_t>(model_.layout.columns / kGroup)};
    }
    const Codes* codes(const Position& at) const { return &codes_[first_table(at)]; }
    const Slots* slots(const Position& at) const { return &slots_[first_table(at)]; }
    const uint64_t* column_class(const Position& at) const {
        return model_.column_class.empty() ? nullptr : &model_.column_class[at.group];
    }
    /// Step of the levels of a row, 0 without levels.
    uint16_t step(const Position& at) const { return model_.steps.empty() ? 0 : model_.steps[at.row]; }

  private:
    size_t first_table(const Position& at) const {
        return model_.row_class.empty() ? 0 : model_.row_class[at.row] * model_.layout.column_classes;
    }

    const Model& model_;
    std::vector<Codes> codes_;
    std::vector<Slots> slots_;

  public:
    const Kernels& kernels;
    Codes rare_codes;
    Slots rare_slots;
    EntryOf entry_of, rare_entry_of;  // by value; levels have entry tables of their own
};

/// The entries of the values in a row with levels of this step.
EntryOf level_entries(uint16_t step);

/// A tile to encode. Packs `n` values, which begin at element `first` of the array, into at most n - 1 bytes
/// at `to`.
struct EncodeTask {
    const uint8_t* values;
    size_t n;
    uint64_t first;
    uint8_t* to;
    size_t size = 0;  // answer: of the packed bytes, or 0 if they would not be fewer than n
};

/// A tile to decode, with the CRC-32C that its packed bytes should have. Bytes from there up to `readable`
/// are read, though never used.
struct DecodeTask {
    Bytes packed;
    const uint8_t* readable;
    uint32_t checksum;
    uint8_t* values;
    size_t n;
    uint64_t first;
    const char* problem = nullptr;  // answer: what is wrong; the values are then undefined
};

/// The working memory of one thread, made once for all of its tiles.
class Scratch {
  public:
    explicit Scratch(size_t tile_size);

    /// Room for what chain `chain` of kMaxChains puts aside, with kLanes bytes to spare at both ends.
    uint8_t* escaped(size_t chain) { return part(chain, 0); }
    uint8_t* raw(size_t chain) { return part(chain, 1); }
    uint8_t* stream(size_t chain) { return part(chain, 2); }  // twice as much
    size_t tile_size() const { return tile_size_; }

  private:
    uint8_t* part(size_t chain, size_t number) {
        return memory_.get() + (4 * chain + number) * (tile_size_ + 2 * kLanes) + kLanes;
    }

    size_t tile_size_;
    std::unique_ptr<uint8_t[]> memory_;  // most of it is never touched
};

/// Encodes up to kMaxChains tiles together, which hides the latency of each.
void rans_encode(const Coder& coder, EncodeTask* tasks, size_t count, Scratch& scratch) noexcept;

/// Decodes and verifies up to kMaxChains tiles together.
void rans_decode(const Coder& coder, DecodeTask* tasks, size_t count, Scratch& scratch) noexcept;

}  // namespace slimrun
