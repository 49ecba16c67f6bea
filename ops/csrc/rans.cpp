#include "rans.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>

#include "crc32c.hpp"
#include "low_bits.hpp"

namespace slimrun {
namespace {

// For tests/fuzz: kernels may then read up to 64 bytes behind the end of the container.
#ifdef SLIMRUN_PLANT_BUG
constexpr ptrdiff_t kPlanted = kLanes;
#else
constexpr ptrdiff_t kPlanted = 0;
#endif

Codes make_codes(const Frequencies& frequencies) {
    Codes codes{};
    uint32_t start = 0;
    for (size_t e = 0; e < kEntries; ++e) {
        const uint32_t frequency = frequencies[e];
        const uint32_t reciprocal = frequency > 1 ? 65536 / frequency : 65535;
        codes.frequency[e] = static_cast<uint8_t>(frequency);
        codes.start[e] = static_cast<uint8_t>(start);
        codes.reciprocal_low[e] = static_cast<uint8_t>(reciprocal);
        codes.reciprocal_high[e] = static_cast<uint8_t>(reciprocal >> 8);
        start += frequency;
    }
    return codes;
}

/// The value of each entry; the escape's is one that no other entry has.
Symbols entry_values(const Symbols& symbols, const ModelLayout& layout, int low_bits) {
    Symbols values;
    for (size_t e = 0; e < kEntries; ++e)
        values[e] = layout.levels ? static_cast<uint8_t>(e) : value_of(symbols[e], low_bits);
    if (layout.levels) return values;
    uint8_t free = 0;
    while (std::find(values.begin(), values.begin() + kEscape, free) != values.begin() + kEscape) ++free;
    values[kEscape] = free;
    return values;
}

Slots make_slots(const Frequencies& frequencies, const Symbols& values) {
    Slots slots{};
    std::array<uint8_t, kTotal> entry;
    size_t slot = 0;
    for (size_t e = 0; e < kEntries; ++e) {
        slots.entry_value[e] = values[e];
        slots.entry_twice[e] = static_cast<uint8_t>(2 * frequencies[e]);
        slots.entry_start[e] = static_cast<uint8_t>(slot);
        for (uint8_t bias = 0; bias < frequencies[e]; ++bias, ++slot) {
            entry[slot] = static_cast<uint8_t>(e);
            slots.value[slot] = values[e];
            slots.twice[slot] = slots.entry_twice[e];
            slots.bias[slot] = bias;
        }
    }
    for (size_t i = 0; i < kTotal; ++i)
        slots.entry_change[i] = static_cast<uint8_t>(entry[i] ^ (i < kEntries ? 0 : entry[i - kEntries]));
    slots.escape = values[kEscape];
    return slots;
}

EntryOf make_entry_of(const Symbols& symbols, const Frequencies& used, int low_bits) {
    std::array<uint8_t, 256> of_high;
    of_high.fill(kEscape);
    for (size_t e = 0; e < kEscape; ++e)
        if (used[e]) of_high[symbols[e]] = static_cast<uint8_t>(e);
    EntryOf table;
    for (size_t value = 0; value < 256; ++value)
        table.entry[value] = of_high[high_part(static_cast<uint8_t>(value), low_bits)];
    return table;
}

}  // namespace

EntryOf level_entries(uint16_t step) {
    EntryOf table;
    std::memset(table.entry, kEscape, sizeof table.entry);
    for (size_t e = 0; e < kEscape; ++e) table.entry[level_value(e, step)] = static_cast<uint8_t>(e);
    return table;
}

namespace {

/// Which entries have a frequency in any class: the encoder may then use them in all.
Frequencies used_anywhere(const Model& model) {
    Frequencies used{};
    for (const Frequencies& frequencies : model.frequencies)
        for (size_t e = 0; e < kEntries; ++e) used[e] = static_cast<uint8_t>(used[e] | frequencies[e]);
    return used;
}

uint32_t load24(const uint8_t* from) { return from[0] | from[1] << 8 | from[2] << 16; }
void store24(uint8_t* to, size_t value) {
    for (size_t i = 0; i < 3; ++i) to[i] = static_cast<uint8_t>(value >> 8 * i);
}

/// How many of a tile's values are coded; the others are where the lanes start.
size_t coded(size_t n) { return n >= kLanes ? n - kLanes : n; }

/// The low byte of a lane's start for a value: 0, -1, 1, -2, .. become 0, 1, 2, 3, ..
uint8_t fold(uint8_t value) { return static_cast<uint8_t>(value << 1 ^ (value >> 7 ? 255 : 0)); }
uint8_t unfold(uint8_t start) { return static_cast<uint8_t>(start >> 1 ^ (start & 1 ? 255 : 0)); }

/// A tile on its way through the encoder: one sequence after the other, each from its end.
class Encoding {
  public:
    Encoding(const Coder& coder, EncodeTask& task, Scratch& scratch, size_t number)
        : coder_(coder), task_(task), low_bits_(coder.model().low_bits) {
        stream_end_ = scratch.stream(number) + 2 * scratch.tile_size();
        escaped_end_ = scratch.escaped(number) + scratch.tile_size();
        raw_end_ = scratch.raw(number) + scratch.tile_size();
        const size_t n = task.n;
        std::memset(chain.lanes.low, 0, kLanes);
        std::memset(chain.lanes.high, 1, kLanes);
        for (size_t i = coded(n); i < n && n >= kLanes; ++i)
            chain.lanes.low[i % kLanes] = fold(task.values[i]);
        chain.stream = stream_end_;
    }

    /// Begins with the values of the tile.
    void begin_common() {
        chain.escaped = escaped_end_;
        chain.values = task_.values + coded(task_.n);
        left_ = coded(task_.n);
        common_ = true;
        move_to_row();
        partial();
    }

    /// Goes on with those that escaped.
    void begin_rare() {
        escaped_ = chain.escaped;
        chain.values = escaped_end_;
        left_ = static_cast<size_t>(escaped_end_ - escaped_);
        chain.escaped = raw_end_;
        chain.codes = &coder_.rare_codes;
        chain.entry_of = &coder_.rare_entry_of;
        chain.column_class = nullptr;
        common_ = false;
        in_row_ = left_ / kLanes;
        partial();
    }

    /// Full steps that may follow now, 0 if the sequence is done.
    size_t ready() {
        if (common_ && in_row_ == 0 && left_ > 0) move_to_row();
        return std::min(in_row_, left_ / kLanes);
    }
    void took(size_t steps) {
        left_ -= steps * kLanes;
        in_row_ -= steps;
    }

    void finish() {
        const size_t stream = static_cast<size_t>(stream_end_ - chain.stream);
        const size_t escaped = static_cast<size_t>(escaped_end_ - escaped_);
        const size_t raw = static_cast<size_t>(raw_end_ - chain.escaped);
        const size_t size = kTileHeader + stream + raw + low_bits_size(coded(task_.n), low_bits_);
        task_.size = size < task_.n ? size : 0;
        if (task_.size == 0) return;
        uint8_t* to = task_.to;
        store24(to, escaped);
        store24(to + 3, raw);
        std::memcpy(to + 6, &chain.lanes, 2 * kLanes);
        std::memcpy(to + kTileHeader, chain.stream, stream);
        for (size_t i = 0; i < raw; ++i)
            to[kTileHeader + stream + i] = value_of(high_part(chain.escaped[i], low_bits_), low_bits_);
        pack_low_bits(task_.values, coded(task_.n), low_bits_, to + kTileHeader + stream + raw);
    }

    EncodeChain chain;

  private:
    /// The elements beyond the last full step.
    void partial() {
        for (size_t lane = left_ % kLanes; lane-- > 0;) {
            const uint8_t value = *--chain.values;
            const uint8_t entry = chain.entry_of->entry[value];
            if (entry == kEscape) *--chain.escaped = value;
            uint32_t x = chain.lanes.low[lane] | chain.lanes.high[lane] << 8;
            if (x >= uint32_t{chain.codes->frequency[entry]} << 9) {
                *--chain.stream = static_cast<uint8_t>(x);
                x >>= 8;
            }
            x = encode_lane(*chain.codes, x, entry);
            chain.lanes.low[lane] = static_cast<uint8_t>(x);
            chain.lanes.high[lane] = static_cast<uint8_t>(x >> 8);
        }
        left_ -= left_ % kLanes;
    }

    /// Looks up what holds for the row of the value before chain.values.
    void move_to_row() {
        if (left_ == 0) return;
        const uint64_t last = task_.first + left_ - 1;
        const Position at = coder_.position(last);
        in_row_ = at.group + 1;
        chain.codes = coder_.codes(at);
        chain.entry_of = &coder_.entry_of;
        chain.column_class = coder_.column_class(at);
        if (chain.column_class) ++chain.column_class;
        if (const uint16_t step = coder_.step(at)) {
            levels_ = level_entries(step);
            chain.entry_of = &levels_;
        }
    }

    const Coder& coder_;
    EncodeTask& task_;
    const int low_bits_;
    uint8_t *stream_end_, *escaped_end_, *raw_end_, *escaped_ = nullptr;
    size_t left_ = 0, in_row_ = 0;
    bool common_ = true;
    EntryOf levels_;
};

/// A tile on its way through the decoder.
class Decoding {
  public:
    Decoding(const Coder& coder, DecodeTask& task, Scratch& scratch, size_t number)
        : coder_(coder), task_(task), escaped_(scratch.escaped(number)) {
        chain.low_bits = 0;
        chain.checked = task.packed.data;
        chain.checked_end = task.packed.data;
        chain.crc = ~uint32_t{0};
    }

    /// Reads the header and begins with the escaped values. False: see task.problem.
    bool begin_rare() {
        const size_t n = task_.n;
        const size_t low_size = low_bits_size(coded(n), coder_.model().low_bits);
        const Bytes packed = task_.packed;
        if (packed.size < kTileHeader + low_size) return fail("too short for its header and low bits");
        n_escaped_ = load24(packed.data);
        n_raw_ = load24(packed.data + 3);
        if (n_escaped_ > coded(n) || n_raw_ > n_escaped_) return fail("more escaped values than elements");
        if (packed.size < kTileHeader + low_size + n_raw_) return fail("too short for its raw bytes");
        std::memcpy(&chain.lanes, packed.data + 6, 2 * kLanes);
        bool good = true;
        for (uint8_t high : chain.lanes.high) good &= high != 0;
        if (!good) return fail("a lane starts below its range");
        chain.stream = packed.data + kTileHeader;
        stream_end_ = packed.end() - low_size - n_raw_;
        chain.checked_end = packed.end();
        chain.escaped = stream_end_;
        chain.values = escaped_;
        chain.slots = &coder_.rare_slots;
        common_ = false;
        left_ = n_escaped_;
        in_row_ = left_ / kLanes;
        return true;
    }

    /// Goes on with the values of the tile.
    bool begin_common() {
        if (!partial()) return false;
        if (chain.escaped != stream_end_ + n_raw_) return fail("raw bytes are left over or too few");
        chain.escaped = escaped_;
        chain.values = task_.values;
        chain.low_bits = coder_.model().low_bits;
        chain.planes = stream_end_ + n_raw_;
        common_ = true;
        left_ = coded(task_.n);
        position_ = coder_.position(task_.first);
        move_to_row();
        return true;
    }

    /// Full steps that a kernel may take now, 0 if the sequence is done. Close to the end of what may be read
    /// it takes some itself.
    size_t ready() {
        while (left_ >= kLanes && !task_.problem) {
            if (in_row_ == 0) move_to_row();
            size_t steps = std::min(in_row_, left_ / kLanes);
            steps = std::min(steps, static_cast<size_t>(task_.readable - chain.stream + kPlanted) / kLanes);
            if (!common_)
                steps = std::min(steps, static_cast<size_t>(task_.readable - chain.escaped) / kLanes);
            if (steps > 0) return steps;
            if (!careful(kLanes)) return 0;
            took(1);
        }
        return 0;
    }
    void took(size_t steps) {
        left_ -= steps * kLanes;
        in_row_ -= std::min(in_row_, steps);
    }

    void finish() {
        const int low_bits = coder_.model().low_bits;
        if (!partial()) return;
        if (chain.stream != stream_end_ || chain.escaped != escaped_ + n_escaped_) {
            fail("the stream or the escaped values end elsewhere than the elements");
            return;
        }
        const size_t n = task_.n;
        const bool folded = n >= kLanes;
        bool good = true;
        for (size_t lane = 0; lane < kLanes; ++lane) {
            good &= chain.lanes.high[lane] == 1;
            good &= folded | (chain.lanes.low[lane] == 0);
        }
        if (!good) {
            fail("a lane does not end where an encoder starts");
            return;
        }
        if (folded) {
            uint8_t last[kLanes];
            for (size_t lane = 0; lane < kLanes; ++lane) last[lane] = unfold(chain.lanes.low[lane]);
            const size_t turn = n % kLanes;  // the lane of the first of them
            uint8_t* const to = task_.values + coded(n);
            std::memcpy(to, last + turn, kLanes - turn);
            std::memcpy(to + kLanes - turn, last, turn);
        }
        const size_t done = coded(n) / kLanes * kLanes;
        add_low_bits(chain.planes, coded(n) - done, low_bits, task_.values + done);
    }

    /// Compares the checksum; what damage did to the values is not worth telling then.
    void verify() {
        const Bytes rest{chain.checked, static_cast<size_t>(task_.packed.end() - chain.checked)};
        if (crc32c(rest, ~chain.crc) != task_.checksum) task_.problem = "checksum mismatch";
    }

    DecodeChain chain;

  private:
    bool fail(const char* problem) {
        task_.problem = problem;
        return false;
    }

    /// What is left of the sequence, less than a step.
    bool partial() {
        const size_t n = left_ % kLanes;
        left_ = 0;
        if (task_.problem) return false;
        if (n == 0) return true;
        const uint8_t* const furthest = common_ ? chain.stream : std::max(chain.stream, chain.escaped);
        if (task_.readable - furthest < static_cast<ptrdiff_t>(kLanes)) return careful(n);
        coder_.kernels.decode_part(chain, n);
        return true;
    }

    /// The first n lanes with all bounds checked; low bits only when it is a whole step.
    bool careful(size_t n) {
        const uint8_t* const escaped_end = common_ ? escaped_ + n_escaped_ : stream_end_ + n_raw_;
        for (size_t lane = 0; lane < n; ++lane) {
            const size_t column = chain.column_class ? *chain.column_class >> lane & 1 : 0;
            const Slots& slots = chain.slots[column];
            uint32_t x = chain.lanes.low[lane] | chain.lanes.high[lane] << 8;
            uint8_t value;
            x = decode_lane(slots, x, value);
            if (needs_byte(x)) {
                if (chain.stream >= stream_end_) return fail("the stream ends before the elements");
                x = x << 8 | *chain.stream++;
            }
            if (value == slots.escape) {
                if (chain.escaped >= escaped_end) return fail("the escaped values end before the elements");
                value = *chain.escaped++;
            } else if (chain.levels) {
                value = chain.levels[value];
            }
            *chain.values++ = value;
            chain.lanes.low[lane] = static_cast<uint8_t>(x);
            chain.lanes.high[lane] = static_cast<uint8_t>(x >> 8);
        }
        if (n == kLanes && chain.low_bits) {
            add_low_bits(chain.planes, kLanes, chain.low_bits, chain.values - kLanes);
            chain.planes += 8 * chain.low_bits;
        }
        if (n == kLanes && chain.column_class) ++chain.column_class;
        return true;
    }

    void move_to_row() {
        if (!common_ || left_ == 0) return;
        const Position at = position_;
        position_ = coder_.next_row(at);
        in_row_ = at.left;
        chain.slots = coder_.slots(at);
        chain.column_class = coder_.column_class(at);
        if (const uint16_t step = coder_.step(at)) {
            for (size_t e = 0; e < kEntries; ++e) levels_[e] = level_value(e, step);
            chain.levels = levels_;
        }
    }

    const Coder& coder_;
    DecodeTask& task_;
    uint8_t* const escaped_;
    const uint8_t* stream_end_ = nullptr;
    size_t n_escaped_ = 0, n_raw_ = 0, left_ = 0, in_row_ = 0;
    Position position_;  // of the next row
    bool common_ = false;
    alignas(16) uint8_t levels_[kEntries];
};

/// Takes all full steps of the sequences, as many chains together as there are.
template <class Tile, class Chain>
void run_steps(Tile* const* tiles, size_t count, void (*kernel)(Chain* const*, size_t, size_t)) {
    for (;;) {
        Chain* chains[kMaxChains];
        Tile* active[kMaxChains];
        size_t n = 0, steps = std::numeric_limits<size_t>::max();
        for (size_t i = 0; i < count; ++i) {
            const size_t ready = tiles[i]->ready();
            if (ready == 0) continue;
            active[n] = tiles[i];
            chains[n++] = &tiles[i]->chain;
            steps = std::min(steps, ready);
        }
        if (n == 0) return;
        kernel(chains, n, steps);
        for (size_t i = 0; i < n; ++i) active[i]->took(steps);
    }
}

}  // namespace

Coder::Coder(const Model& model) : model_(model), kernels(slimrun::kernels()) {
    const Symbols values = entry_values(model.common, model.layout, model.low_bits);
    for (const Frequencies& frequencies : model.frequencies) {
        codes_.push_back(make_codes(frequencies));
        slots_.push_back(make_slots(frequencies, values));
    }
    ModelLayout plain;
    rare_codes = make_codes(model.rare_frequencies);
    rare_slots = make_slots(model.rare_frequencies, entry_values(model.rare, plain, model.low_bits));
    entry_of = make_entry_of(model.common, used_anywhere(model), model.low_bits);
    rare_entry_of = make_entry_of(model.rare, model.rare_frequencies, model.low_bits);
}

Position Coder::position(uint64_t at) const {
    if (!model_.layout.by_place()) return {0, 0, std::numeric_limits<size_t>::max() / kGroup};
    const uint64_t columns = model_.layout.columns;
    const size_t group = static_cast<size_t>(at % columns / kGroup);
    return {static_cast<size_t>(at / columns), group, static_cast<size_t>(columns / kGroup) - group};
}

// At most a byte of the stream for each value of both sequences.
Scratch::Scratch(size_t tile_size)
    : tile_size_(tile_size), memory_(new uint8_t[kMaxChains * 4 * (tile_size + 2 * kLanes)]) {}

void rans_encode(const Coder& coder, EncodeTask* tasks, size_t count, Scratch& scratch) noexcept {
    std::optional<Encoding> memory[kMaxChains];
    Encoding* tiles[kMaxChains] = {};
    for (size_t i = 0; i < count; ++i) {
        tiles[i] = &memory[i].emplace(coder, tasks[i], scratch, i);
        tiles[i]->begin_common();
    }
    run_steps(tiles, count, coder.kernels.encode);
    for (size_t i = 0; i < count; ++i) tiles[i]->begin_rare();
    run_steps(tiles, count, coder.kernels.encode);
    for (size_t i = 0; i < count; ++i) tiles[i]->finish();
}

void rans_decode(const Coder& coder, DecodeTask* tasks, size_t count, Scratch& scratch) noexcept {
    std::optional<Decoding> memory[kMaxChains];
    Decoding* tiles[kMaxChains] = {};
    size_t good = 0;
    for (size_t i = 0; i < count; ++i) {
        Decoding& tile = memory[i].emplace(coder, tasks[i], scratch, i);
        if (tile.begin_rare()) tiles[good++] = &tile;
    }
    run_steps(tiles, good, coder.kernels.decode);
    const auto failed = [](Decoding* tile) { return !tile->begin_common(); };
    good = static_cast<size_t>(std::remove_if(tiles, tiles + good, failed) - tiles);
    run_steps(tiles, good, coder.kernels.decode);
    for (size_t i = 0; i < good; ++i) tiles[i]->finish();
    for (size_t i = 0; i < count; ++i) memory[i]->verify();
}

}  // namespace slimrun
