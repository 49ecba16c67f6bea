#include "codec.hpp"

#include <cstring>
#include <stdexcept>
#include <string>

#include "threads.hpp"

namespace slimrun {
namespace {

Histogram count_tiles(const Header& header, const uint8_t* values, size_t workers) {
    std::vector<Histogram> parts(workers, Histogram{});
    run_tasks(header.tiles(), workers, [&](size_t worker, uint64_t t) noexcept -> const char* {
        count({values + t * header.tile_size, header.elements(t)}, parts[worker]);
        return nullptr;
    });
    Histogram counts{};
    for (const Histogram& part : parts)
        for (size_t value = 0; value < counts.size(); ++value) counts[value] += part[value];
    return counts;
}

std::vector<Scratch> make_scratches(const Header& header, size_t workers) {
    const uint64_t longest = std::min(header.tile_size, header.numel);
    return std::vector<Scratch>(workers, Scratch(static_cast<size_t>(longest)));
}

[[noreturn]] void fail(uint64_t t, const char* problem) {
    throw std::invalid_argument("tile " + std::to_string(t) + ": " + problem);
}

}  // namespace

uint64_t encode_bound(const Header& header) {
    return header.info_bytes() + header.index_bytes() + header.numel;
}

uint64_t encode(Header header, const uint8_t* values, size_t threads, uint8_t* to) {
    const size_t workers = worker_count(threads, header.tiles());
    const Model model = choose_model(count_tiles(header, values, workers));
    const Encoder encoder(model);
    header.low_bits = model.low_bits;
    uint8_t* const index = to + header.info_bytes();
    uint8_t* const payload = index + header.index_bytes();

    // A tile never grows: each is packed where it would lie if none shrank, then all move together.
    std::vector<Scratch> scratches = make_scratches(header, workers);
    std::vector<Tile> tiles(static_cast<size_t>(header.tiles()));
    run_tasks(header.tiles(), workers, [&](size_t worker, uint64_t t) noexcept -> const char* {
        const uint64_t first = t * header.tile_size;
        tiles[t] = pack_tile(encoder, values + first, header.elements(t), scratches[worker], payload + first);
        return nullptr;
    });
    for (uint64_t t = 0; t < header.tiles(); ++t) {
        tiles[t].offset = header.payload_bytes;
        std::memmove(payload + tiles[t].offset, payload + t * header.tile_size, tiles[t].size);
        write_entry(header, t, tiles[t], index);
        header.payload_bytes += tiles[t].size;
    }
    write_model(model, index);
    write_info(header, index, to);
    return header.info_bytes() + header.index_bytes() + header.payload_bytes;
}

void decode(const Container& container, size_t threads, uint8_t* values) {
    const Header& header = container.header();
    const Decoder decoder(container.model());
    const size_t workers = worker_count(threads, header.tiles());
    std::vector<Scratch> scratches = make_scratches(header, workers);
    const Failure failure = run_tasks(header.tiles(), workers, [&](size_t worker, uint64_t t) noexcept {
        const Tile tile = container.tile(t);
        return unpack_tile(decoder, tile, container.packed(tile), values + t * header.tile_size,
                           header.elements(t), scratches[worker]);
    });
    if (failure.problem) fail(failure.task, failure.problem);
}

void decode_tile(const Container& container, uint64_t t, uint8_t* values) {
    const Header& header = container.header();
    const Decoder decoder(container.model());
    Scratch scratch(header.elements(t));
    const Tile tile = container.tile(t);
    const char* const problem =
        unpack_tile(decoder, tile, container.packed(tile), values, header.elements(t), scratch);
    if (problem) fail(t, problem);
}

}  // namespace slimrun
