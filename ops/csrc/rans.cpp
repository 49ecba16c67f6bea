#include "rans.hpp"

#include <algorithm>

#include "low_bits.hpp"

namespace slimrun {
namespace {

using Lanes = std::array<uint16_t, kLanes>;

// ceil(2^23 / f) * x >> 23 is x / f for every x < 2^16 and f <= 2^7: rounding up adds less than x / 2^23 <= 1
// / f.
constexpr int kReciprocalBits = 23;

std::array<Code, 256> make_codes(const Table& table, int low_bits) {
    std::array<Code, kEntries> entries{};
    std::array<uint8_t, 256> entry_of{};
    entry_of.fill(kEscape);
    uint32_t start = 0;
    for (size_t e = 0; e < kEntries; ++e) {
        const uint32_t frequency = table.frequencies[e];
        if (frequency == 0) continue;
        const uint32_t reciprocal = ((1u << kReciprocalBits) + frequency - 1) / frequency;
        entries[e] = {frequency << 9, reciprocal, static_cast<uint8_t>(frequency),
                      static_cast<uint8_t>(start), e == kEscape};
        if (e != kEscape) entry_of[table.symbols[e]] = static_cast<uint8_t>(e);
        start += frequency;
    }
    std::array<Code, 256> codes;
    for (size_t v = 0; v < codes.size(); ++v)
        codes[v] = entries[entry_of[high_part(static_cast<uint8_t>(v), low_bits)]];
    return codes;
}

Slot make_slot(uint32_t frequency, uint32_t bias, uint32_t value, bool escapes) {
    return frequency | bias << 8 | value << 16 | uint32_t{escapes} << 24;
}
uint8_t frequency(Slot slot) { return static_cast<uint8_t>(slot); }
uint8_t bias(Slot slot) { return static_cast<uint8_t>(slot >> 8); }
uint8_t value(Slot slot) { return static_cast<uint8_t>(slot >> 16); }
uint8_t escapes(Slot slot) { return static_cast<uint8_t>(slot >> 24); }

std::array<Slot, kTotal> make_slots(const Table& table, int low_bits) {
    std::array<Slot, kTotal> slots{};
    size_t slot = 0;
    for (size_t e = 0; e < kEntries; ++e)
        for (uint8_t bias = 0; bias < table.frequencies[e]; ++bias)
            slots[slot++] =
                make_slot(table.frequencies[e], bias, value_of(table.symbols[e], low_bits), e == kEscape);
    return slots;
}

/// Codes a sequence from its last value to its first; returns where the stream now begins.
template <class OnEscape>
uint8_t* encode_sequence(const std::array<Code, 256>& codes, const uint8_t* values, size_t n, Lanes& lanes,
                         uint8_t* stream, OnEscape on_escape) {
    for (size_t i = n; i-- > 0;) {
        const Code& code = codes[values[i]];
        if (code.escapes) on_escape(values[i]);
        uint32_t x = lanes[i % kLanes];
        const uint32_t full = x >= code.limit;
        stream[-1] = static_cast<uint8_t>(x);  // stays only if the pointer moves: a coin toss is no branch
        stream -= full;
        x >>= 8 * full;
        const uint32_t quotient = static_cast<uint32_t>(uint64_t{x} * code.reciprocal >> kReciprocalBits);
        lanes[i % kLanes] = static_cast<uint16_t>(x + code.start + quotient * (kTotal - code.frequency));
    }
    return stream;
}

/// What is left to read of the stream, with the raw bytes at its end.
struct Reader {
    const uint8_t* at;
    const uint8_t* end;
};

/// One step over all 64 lanes, when at least 64 bytes are left. Each loop is one instruction of a SIMD
/// decoder and has no branch; compilers vectorize all but the look-up and the one that hands out bytes.
template <class OnEscape>
bool decode_step(const std::array<Slot, kTotal>& slots, uint8_t* values, Lanes& lanes, Reader& reader,
                 OnEscape& on_escape) {
    std::array<Slot, kLanes> found;
    for (size_t lane = 0; lane < kLanes; ++lane) found[lane] = slots[lanes[lane] % kTotal];
    for (size_t lane = 0; lane < kLanes; ++lane)
        lanes[lane] = static_cast<uint16_t>(frequency(found[lane]) * (lanes[lane] >> kProbabilityBits) +
                                            bias(found[lane]));

    std::array<uint16_t, kLanes> empty, fresh;
    for (size_t lane = 0; lane < kLanes; ++lane) empty[lane] = lanes[lane] < kLaneStart;
    const uint8_t* at = reader.at;
    for (size_t lane = 0; lane < kLanes; ++lane) {
        fresh[lane] = *at;
        at += empty[lane];
    }
    reader.at = at;
    for (size_t lane = 0; lane < kLanes; ++lane)
        lanes[lane] = static_cast<uint16_t>(lanes[lane] + (lanes[lane] * 255u + fresh[lane]) * empty[lane]);

    std::array<uint8_t, kLanes> escaped;
    for (size_t lane = 0; lane < kLanes; ++lane) values[lane] = value(found[lane]);
    for (size_t lane = 0; lane < kLanes; ++lane) escaped[lane] = escapes(found[lane]);
    for (size_t lane = 0; lane < kLanes; lane += 8) {
        if (load<uint64_t>(&escaped[lane]) == 0) continue;
        for (size_t i = lane; i < lane + 8; ++i)
            if (escaped[i] && !on_escape(values[i])) return false;
    }
    return true;
}

/// The same for the first n lanes and with any number of bytes left.
template <class OnEscape>
bool decode_last_step(const std::array<Slot, kTotal>& slots, uint8_t* values, size_t n, Lanes& lanes,
                      Reader& reader, OnEscape& on_escape) {
    for (size_t lane = 0; lane < n; ++lane) {
        const Slot slot = slots[lanes[lane] % kTotal];
        uint32_t x = frequency(slot) * (lanes[lane] >> kProbabilityBits) + bias(slot);
        if (x < kLaneStart) {
            if (reader.at >= reader.end) return false;
            x = x << 8 | *reader.at++;
        }
        lanes[lane] = static_cast<uint16_t>(x);
        values[lane] = value(slot);
        if (escapes(slot) && !on_escape(values[lane])) return false;
    }
    return true;
}

template <class OnEscape>
bool decode_sequence(const std::array<Slot, kTotal>& slots, uint8_t* values, size_t n, Lanes& lanes,
                     Reader& reader, OnEscape on_escape) {
    for (size_t i = 0; i < n; i += kLanes) {
        const size_t size = std::min(kLanes, n - i);
        const bool roomy = size == kLanes && reader.end - reader.at >= static_cast<ptrdiff_t>(kLanes);
        const bool good = roomy ? decode_step(slots, values + i, lanes, reader, on_escape)
                                : decode_last_step(slots, values + i, size, lanes, reader, on_escape);
        if (!good) return false;
    }
    return true;
}

}  // namespace

Encoder::Encoder(const Model& model)
    : low_bits(model.low_bits),
      common(make_codes(model.common, model.low_bits)),
      rare(make_codes(model.rare, model.low_bits)) {}

Decoder::Decoder(const Model& model)
    : low_bits(model.low_bits),
      common(make_slots(model.common, model.low_bits)),
      rare(make_slots(model.rare, model.low_bits)) {}

// Each sequence writes at most a byte for each of its elements, and one byte in front of the stream is
// scratched.
Scratch::Scratch(size_t tile_size) : escaped(tile_size), raw(tile_size), stream(2 * tile_size + 1) {}

size_t rans_encode(const Encoder& encoder, const uint8_t* values, size_t n, Scratch& scratch,
                   uint8_t* to) noexcept {
    Lanes lanes;
    lanes.fill(kLaneStart);
    uint8_t* const escaped_end = scratch.escaped.data() + scratch.escaped.size();
    uint8_t* const stream_end = scratch.stream.data() + scratch.stream.size();
    uint8_t* escaped = escaped_end;
    uint8_t* raw = scratch.raw.data();
    uint8_t* stream = encode_sequence(encoder.common, values, n, lanes, stream_end,
                                      [&escaped](uint8_t value) { *--escaped = value; });
    const size_t n_escaped = static_cast<size_t>(escaped_end - escaped);
    stream = encode_sequence(encoder.rare, escaped, n_escaped, lanes, stream,
                             [&](uint8_t value) { *raw++ = high_part(value, encoder.low_bits); });

    const size_t size = kTileHeader + static_cast<size_t>(stream_end - stream) +
                        static_cast<size_t>(raw - scratch.raw.data()) + low_bits_size(n, encoder.low_bits);
    if (size >= n) return 0;
    store(to, static_cast<uint32_t>(n_escaped));
    for (size_t lane = 0; lane < kLanes; ++lane) {
        to[4 + lane] = static_cast<uint8_t>(lanes[lane]);
        to[4 + kLanes + lane] = static_cast<uint8_t>(lanes[lane] >> 8);
    }
    to = std::copy(stream, stream_end, to + kTileHeader);
    to = std::copy(scratch.raw.data(), raw, to);
    pack_low_bits(values, n, encoder.low_bits, to);
    return size;
}

const char* rans_decode(const Decoder& decoder, Bytes packed, uint8_t* values, size_t n,
                        Scratch& scratch) noexcept {
    const size_t low_size = low_bits_size(n, decoder.low_bits);
    if (packed.size < kTileHeader + low_size) return "too short for its header and low bits";
    const size_t n_escaped = load<uint32_t>(packed.data);
    if (n_escaped > n) return "more escaped values than elements";
    Lanes lanes;
    for (size_t lane = 0; lane < kLanes; ++lane) {
        lanes[lane] = static_cast<uint16_t>(packed.data[4 + lane] | packed.data[4 + kLanes + lane] << 8);
        if (lanes[lane] < kLaneStart) return "a lane starts below its range";
    }
    Reader reader{packed.data + kTileHeader, packed.end() - low_size};

    uint8_t* const escaped = scratch.escaped.data();
    const bool rare_good =
        decode_sequence(decoder.rare, escaped, n_escaped, lanes, reader, [&](uint8_t& value) {
            if (reader.at >= reader.end) return false;
            value = value_of(*--reader.end, decoder.low_bits);
            return true;
        });
    if (!rare_good) return "the stream ends within the escaped values";

    const uint8_t* next = escaped;
    const bool common_good = decode_sequence(decoder.common, values, n, lanes, reader, [&](uint8_t& value) {
        if (next == escaped + n_escaped) return false;
        value = *next++;
        return true;
    });
    if (!common_good) return "the stream or the escaped values end before the elements";
    if (reader.at != reader.end || next != escaped + n_escaped) return "bytes are left over";
    for (uint32_t x : lanes)
        if (x != kLaneStart) return "a lane does not end where the encoder started";
    add_low_bits(packed.end() - low_size, n, decoder.low_bits, values);
    return nullptr;
}

}  // namespace slimrun
