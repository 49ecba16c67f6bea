#include "codec.hpp"

#include <cstring>
#include <stdexcept>
#include <string>

#include "plan.hpp"
#include "planes.hpp"
#include "threads.hpp"

namespace slimrun {
namespace {

std::vector<Scratch> make_scratches(const Header& header, size_t workers) {
    const uint64_t longest = std::min(header.tile_size, header.numel);
    std::vector<Scratch> scratches;
    for (size_t worker = 0; worker < workers; ++worker) scratches.emplace_back(static_cast<size_t>(longest));
    return scratches;
}

/// Asks for the first bytes of a tile early: a decoder waits for them with nothing else to do.
void prefetch(Bytes packed) {
#if defined(__GNUC__)
    for (size_t i = 0; i < std::min<size_t>(packed.size, 1024); i += 64) __builtin_prefetch(packed.data + i);
#else
    (void)packed;
#endif
}

[[noreturn]] void fail(uint64_t t, const char* problem) {
    throw std::invalid_argument("tile " + std::to_string(t) + ": " + problem);
}

/// Moves a packed tile to where the ones before it end; returns where it ends itself.
uint64_t append(uint8_t* payload, uint64_t end, Tile& tile) {
    if (tile.offset != end) std::memmove(payload + end, payload + tile.offset, tile.size);
    tile.offset = end;
    return end + tile.size;
}

UnpackTask unpack_task(const Container& container, uint64_t t, uint8_t* values) {
    const Header& header = container.header();
    const Tile tile = container.tile(t);
    return {tile,   container.packed(tile), container.payload().end(),
            values, header.elements(t),     t * header.tile_size};
}

}  // namespace

uint64_t encode_bound(const Header& header) {
    return header.info_bytes() + header.index_bound() + header.numel;
}

uint64_t encode(Header header, const uint8_t* values, size_t threads, uint8_t* to) {
    const uint64_t columns = header.ndim ? header.shape[header.ndim - 1] : 1;
    const Model model = plan_matrix(values, header.numel, columns, threads);
    const Coder coder(model);
    header.low_bits = model.low_bits;
    header.model = model.layout;
    uint8_t* const index = to + header.info_bytes();
    uint8_t* const payload = index + header.index_bytes();

    // A tile never grows, so each worker's share of the tiles has room where it would lie if none shrank.
    // There it packs one batch behind the other; then the shares move together. Memory that nothing is
    // written to costs nothing, but what is fresh takes as long to get as to fill.
    const uint64_t batches = batch_count(header.tiles());
    const size_t workers = batch_workers(threads, batches);
    std::vector<Scratch> scratches = make_scratches(header, workers);
    std::vector<Tile> tiles(static_cast<size_t>(header.tiles()));
    run_tasks(workers, workers, [&](size_t worker, uint64_t share) noexcept -> const char* {
        const uint64_t begin = batches * share / workers, end = batches * (share + 1) / workers;
        uint64_t packed = begin * kMaxChains * header.tile_size;
        for (uint64_t batch = begin; batch < end; ++batch) {
            const uint64_t t = batch * kMaxChains;
            const size_t count = batch_size(header.tiles(), t);
            PackTask tasks[kMaxChains] = {};
            for (size_t i = 0; i < count; ++i) {
                const uint64_t first = (t + i) * header.tile_size;
                uint8_t* const room = payload + packed + i * header.tile_size;
                tasks[i] = {values + first, header.elements(t + i), first, room};
            }
            pack_tiles(coder, tasks, count, scratches[worker], &tiles[t]);
            for (size_t i = 0; i < count; ++i) {
                tiles[t + i].offset = static_cast<uint64_t>(tasks[i].to - payload);
                packed = append(payload, packed, tiles[t + i]);
            }
        }
        return nullptr;
    });
    uint64_t packed = 0;
    for (uint64_t t = 0; t < header.tiles(); ++t) {
        packed = append(payload, packed, tiles[t]);
        write_entry(header, t, tiles[t], index);
    }
    header.payload_bytes = packed;
    write_model(model, index);
    write_info(header, index, to);
    return header.info_bytes() + header.index_bytes() + header.payload_bytes;
}

void decode(const Container& container, size_t threads, uint8_t* values) {
    const Header& header = container.header();
    const Coder coder(container.model());
    const uint64_t batches = batch_count(header.tiles());
    const size_t workers = batch_workers(threads, batches);
    std::vector<Scratch> scratches = make_scratches(header, workers);
    std::vector<uint64_t> bad(batches);
    const Failure failure = run_tasks(batches, workers, [&](size_t worker, uint64_t batch) noexcept {
        const uint64_t t = batch * kMaxChains;
        const size_t count = batch_size(header.tiles(), t);
        UnpackTask tasks[kMaxChains] = {};
        for (uint64_t next = t + kMaxChains; next < t + 2 * kMaxChains && next < header.tiles(); ++next)
            prefetch(container.packed(container.tile(next)));
        for (size_t i = 0; i < count; ++i)
            tasks[i] = unpack_task(container, t + i, values + (t + i) * header.tile_size);
        const Failure failed = unpack_tiles(coder, tasks, count, scratches[worker]);
        bad[batch] = t + failed.task;
        return failed.problem;
    });
    if (failure.problem) fail(bad[failure.task], failure.problem);
}

void decode_numbers(const std::vector<const Container*>& planes, size_t threads, uint8_t* values) {
    const Header& header = planes.at(0)->header();
    const size_t width = planes.size();
    std::vector<Coder> coders;
    for (const Container* plane : planes) coders.emplace_back(plane->model());
    const uint64_t batches = batch_count(header.tiles());
    const size_t workers = batch_workers(threads, batches);
    std::vector<Scratch> scratches = make_scratches(header, workers);
    const size_t room = width * kMaxChains * static_cast<size_t>(std::min(header.tile_size, header.numel));
    std::vector<std::vector<uint8_t>> bytes(workers, std::vector<uint8_t>(room));
    std::vector<uint64_t> bad(batches);
    const Failure failure = run_tasks(batches, workers, [&](size_t worker, uint64_t batch) noexcept {
        const uint64_t t = batch * kMaxChains, first = t * header.tile_size;
        const size_t count = batch_size(header.tiles(), t);
        const size_t elements =
            static_cast<size_t>(std::min(header.numel, first + count * header.tile_size) - first);
        for (size_t j = 0; j < width; ++j) {
            uint8_t* const plane = bytes[worker].data() + j * elements;
            UnpackTask tasks[kMaxChains] = {};
            for (size_t i = 0; i < count; ++i)
                tasks[i] = unpack_task(*planes[j], t + i, plane + i * header.tile_size);
            const Failure failed = unpack_tiles(coders[j], tasks, count, scratches[worker]);
            bad[batch] = t + failed.task;
            if (failed.problem) return failed.problem;
        }
        merge_planes(bytes[worker].data(), elements, width, values + first * width);
        return static_cast<const char*>(nullptr);
    });
    if (failure.problem) fail(bad[failure.task], failure.problem);
}

void decode_tile(const Container& container, uint64_t t, uint8_t* values) {
    const Coder coder(container.model());
    Scratch scratch(container.header().elements(t));
    const UnpackTask task = unpack_task(container, t, values);
    const Failure failure = unpack_tiles(coder, &task, 1, scratch);
    if (failure.problem) fail(t, failure.problem);
}

}  // namespace slimrun
