#include "nz.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

#include "crc32c.hpp"
#include "plan.hpp"
#include "threads.hpp"

namespace slimrun {
namespace {

constexpr uint8_t kMagic[4] = {'S', 'L', 'N', 'Z'};
constexpr size_t kChecksumAt = 20;
constexpr size_t kModelAt = 24;
constexpr size_t kTileChecksumBytes = 4;

void require(bool good, const std::string& problem) {
    if (!good) throw std::invalid_argument(problem);
}

std::string differ(const char* what, uint64_t is, uint64_t should) {
    return std::string(what) + " is " + std::to_string(is) + ", expected " + std::to_string(should);
}

std::string at_tile(uint64_t t, const char* problem) { return "tile " + std::to_string(t) + ": " + problem; }

void check_side(const char* name, uint64_t fractals) {
    require(fractals >= 1 && fractals <= kMaxFractals,
            std::string(name) + " = " + std::to_string(fractals) + " fractals: must be 1 to 50000");
}

/// Where a tile lies among the fractals.
struct Place {
    uint64_t k, n;           // its first column and row of fractals
    uint64_t columns, rows;  // how many of them it has

    Place(const Fractals& all, uint64_t t)
        : k(t % all.tiles_k() * kTiling),
          n(t / all.tiles_k() * kTiling),
          columns(std::min<uint64_t>(kTiling, all.k1 - k)),
          rows(std::min<uint64_t>(kTiling, all.n1 - n)) {}

    size_t bytes() const { return static_cast<size_t>(columns * rows * kFractalBytes); }
    size_t column_bytes() const { return static_cast<size_t>(rows * kFractalBytes); }
    /// Where the c-th column of the tile, a run of memory, begins in the matrix.
    uint64_t column_at(const Fractals& all, uint64_t c) const {
        return ((k + c) * all.n1 + n) * kFractalBytes;
    }
    /// Bytes of all tiles before this one.
    uint64_t bytes_before(const Fractals& all) const { return (n * all.k1 + k * rows) * kFractalBytes; }
};

void gather(const Fractals& all, const Place& place, const uint8_t* values, uint8_t* tile) {
    for (uint64_t c = 0; c < place.columns; ++c, tile += place.column_bytes())
        std::memcpy(tile, values + place.column_at(all, c), place.column_bytes());
}

void scatter(const Fractals& all, const Place& place, const uint8_t* tile, uint8_t* values) {
    for (uint64_t c = 0; c < place.columns; ++c, tile += place.column_bytes())
        std::memcpy(values + place.column_at(all, c), tile, place.column_bytes());
}

/// The memory of one thread: the values of a batch of tiles, and what coding them takes.
struct Worker {
    Scratch scratch{kNzTileBytes};
    std::vector<uint8_t> values = std::vector<uint8_t>(kMaxChains * kNzTileBytes);

    uint8_t* tile(size_t i) { return values.data() + i * kNzTileBytes; }
};

Histogram count_all(const Fractals& fractals, const uint8_t* values, size_t workers) {
    std::vector<Histogram> parts(workers, Histogram{});
    run_tasks(fractals.k1, workers, [&](size_t worker, uint64_t k) noexcept -> const char* {
        const uint64_t column = fractals.n1 * uint64_t{kFractalBytes};
        count({values + k * column, static_cast<size_t>(column)}, parts[worker]);
        return nullptr;
    });
    Histogram counts{};
    for (const Histogram& part : parts)
        for (size_t value = 0; value < counts.size(); ++value) counts[value] += part[value];
    return counts;
}

void write_entry(const Tile& tile, uint8_t* entry) {
    store(entry, static_cast<uint32_t>(tile.offset));
    store(entry + 4, static_cast<uint16_t>(tile.size));
    entry[6] = tile.value;
    entry[7] = static_cast<uint8_t>(tile.kind);
}

/// Bytes that a tile takes in the payload.
uint64_t stored_bytes(const Tile& tile) {
    return tile.kind == TileKind::constant ? 0 : kTileChecksumBytes + tile.size;
}

uint32_t checksum(const uint8_t* payload, Bytes index) {
    const uint32_t before = crc32c({payload, kChecksumAt});
    const uint32_t after = crc32c({payload + kChecksumAt + 4, kNzHeaderBytes - kChecksumAt - 4}, before);
    return crc32c(index, after);
}

void write_header(const Fractals& fractals, const Model& model, uint64_t size, Bytes index,
                  uint8_t* payload) {
    std::copy_n(kMagic, sizeof kMagic, payload);
    payload[4] = kNzVersion;
    payload[5] = static_cast<uint8_t>(model.low_bits);
    store(payload + 6, uint16_t{0});
    store(payload + 8, fractals.k1);
    store(payload + 12, fractals.n1);
    store(payload + 16, static_cast<uint32_t>(size));
    write_model(model, payload + kModelAt);
    store(payload + kChecksumAt, checksum(payload, index));
}

Fractals read_sizes(Bytes payload) {
    require(payload.size >= kNzHeaderBytes,
            "payload: " + std::to_string(payload.size) + " bytes are too few for a header");
    require(std::equal(kMagic, kMagic + sizeof kMagic, payload.data),
            "payload: not a slimrun-nz container (no magic SLNZ)");
    require(payload.data[4] == kNzVersion, differ("payload: version", payload.data[4], kNzVersion));
    require(payload.data[5] <= kMaxLowBits,
            "payload: low_bits " + std::to_string(payload.data[5]) + ", more than 7");
    const uint16_t flags = load<uint16_t>(payload.data + 6);
    require(flags == 0, "payload: flags " + std::to_string(flags) + " of a later version are set");
    const uint32_t size = load<uint32_t>(payload.data + 16);
    require(payload.size == size, differ("payload: size", payload.size, size));
    return make_fractals(load<uint32_t>(payload.data + 8), load<uint32_t>(payload.data + 12));
}

}  // namespace

Fractals make_fractals(uint64_t k1, uint64_t n1) {
    check_side("k1", k1);
    check_side("n1", n1);
    Fractals fractals;
    fractals.k1 = static_cast<uint32_t>(k1);
    fractals.n1 = static_cast<uint32_t>(n1);
    return fractals;
}

uint64_t nz_encode(const Fractals& fractals, const uint8_t* values, size_t threads, uint8_t* payload,
                   uint8_t* index) {
    const uint64_t batches = batch_count(fractals.tiles());
    const size_t workers = batch_workers(threads, batches);
    const Model model = plan_counts(count_all(fractals, values, workers));
    const Coder coder(model);
    // Each tile is packed where it would lie if none shrank, behind room for its checksum; then all move
    // together.
    const auto widest = [&](uint64_t t) {
        return kNzHeaderBytes + kTileChecksumBytes * (t + 1) + Place(fractals, t).bytes_before(fractals);
    };
    std::vector<Worker> memory(workers);
    std::vector<Tile> tiles(static_cast<size_t>(fractals.tiles()));
    run_tasks(batches, workers, [&](size_t worker, uint64_t batch) noexcept -> const char* {
        const uint64_t t = batch * kMaxChains;
        const size_t count = batch_size(fractals.tiles(), t);
        PackTask tasks[kMaxChains] = {};
        for (size_t i = 0; i < count; ++i) {
            const Place place(fractals, t + i);
            uint8_t* const tile = memory[worker].tile(i);
            gather(fractals, place, values, tile);
            tasks[i] = {tile, place.bytes(), 0, payload + widest(t + i)};
        }
        pack_tiles(coder, tasks, count, memory[worker].scratch, &tiles[t]);
        return nullptr;
    });

    uint64_t size = kNzHeaderBytes;
    for (const Tile& tile : tiles) size += stored_bytes(tile);
    require(size <= std::numeric_limits<uint32_t>::max(),
            "payload: " + std::to_string(size) + " bytes, but its length must be below 4 GiB");
    uint64_t at = kNzHeaderBytes;
    for (uint64_t t = 0; t < fractals.tiles(); ++t) {
        Tile& tile = tiles[t];
        tile.offset = at;
        write_entry(tile, index + kNzIndexBytesPerTile * t);
        at += stored_bytes(tile);
        if (tile.kind == TileKind::constant) continue;
        std::memmove(payload + tile.offset + kTileChecksumBytes, payload + widest(t), tile.size);
        store(payload + tile.offset, tile.checksum);
    }
    write_header(fractals, model, size, {index, static_cast<size_t>(fractals.index_bytes())}, payload);
    return size;
}

NzContainer::NzContainer(Bytes payload, Bytes index)
    : fractals_(read_sizes(payload)), payload_(payload), index_(index) {
    require(index.size == fractals_.index_bytes(),
            differ("index: size", index.size, fractals_.index_bytes()));
    require(load<uint32_t>(payload.data + kChecksumAt) == checksum(payload.data, index),
            "payload and index: checksum mismatch");
    model_ = read_model(payload.data + kModelAt, payload.data[5], ModelLayout());

    uint64_t expected = kNzHeaderBytes;
    for (uint64_t t = 0; t < fractals_.tiles(); ++t) {
        const uint8_t* const entry = index.data + kNzIndexBytesPerTile * t;
        const uint64_t begin = load<uint32_t>(entry);
        const uint64_t size = load<uint16_t>(entry + 4);
        const bool constant = entry[7] == static_cast<uint8_t>(TileKind::constant);
        const uint64_t stored = constant ? 0 : kTileChecksumBytes + size;
        const char* problem = nullptr;
        if (entry[7] > static_cast<uint8_t>(TileKind::constant)) problem = "unknown kind";
        if (entry[6] != 0 && !constant) problem = "a value that only a constant tile has";
        if (size != 0 && constant) problem = "a constant tile with packed bytes";
        if (size > Place(fractals_, t).bytes()) problem = "more packed bytes than elements";
        if (stored > payload.size - expected) problem = "goes on behind the end of the payload";
        if (begin != expected) problem = "does not begin where the tile before it ends";
        if (problem) throw std::invalid_argument(at_tile(t, problem));
        expected += stored;
    }
    require(expected == payload.size, differ("payload: bytes used by tiles", expected, payload.size));
}

Tile NzContainer::tile(uint64_t t) const {
    const uint8_t* const entry = index_.data + kNzIndexBytesPerTile * t;
    Tile tile;
    tile.offset = load<uint32_t>(entry);
    tile.size = load<uint16_t>(entry + 4);
    tile.value = entry[6];
    tile.kind = static_cast<TileKind>(entry[7]);
    if (tile.kind == TileKind::constant) return tile;
    tile.checksum = load<uint32_t>(payload_.data + tile.offset);
    tile.offset += kTileChecksumBytes;
    return tile;
}

void nz_decode(const NzContainer& container, size_t threads, uint8_t* values) {
    const Fractals& fractals = container.fractals();
    const Coder coder(container.model());
    const uint64_t batches = batch_count(fractals.tiles());
    const size_t workers = batch_workers(threads, batches);
    std::vector<Worker> memory(workers);
    std::vector<uint64_t> bad(batches);
    const Failure failure = run_tasks(batches, workers, [&](size_t worker, uint64_t batch) noexcept {
        const uint64_t t = batch * kMaxChains;
        const size_t count = batch_size(fractals.tiles(), t);
        UnpackTask tasks[kMaxChains] = {};
        for (size_t i = 0; i < count; ++i) {
            const Tile tile = container.tile(t + i);
            tasks[i] = {tile,
                        container.packed(tile),
                        container.payload().end(),
                        memory[worker].tile(i),
                        Place(fractals, t + i).bytes(),
                        0};
        }
        const Failure failed = unpack_tiles(coder, tasks, count, memory[worker].scratch);
        bad[batch] = t + failed.task;
        for (size_t i = 0; i < count && !failed.problem; ++i)
            scatter(fractals, Place(fractals, t + i), memory[worker].tile(i), values);
        return failed.problem;
    });
    if (failure.problem) throw std::invalid_argument(at_tile(bad[failure.task], failure.problem));
}

}  // namespace slimrun
