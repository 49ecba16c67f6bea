#include "tile.hpp"

#include <cstring>

#include "crc32c.hpp"

namespace slimrun {

void pack_tiles(const Coder& coder, const PackTask* tasks, size_t count, Scratch& scratch,
                Tile* tiles) noexcept {
    EncodeTask coded[kMaxChains];
    size_t which[kMaxChains];
    size_t n_coded = 0;
    for (size_t i = 0; i < count; ++i) {
        const PackTask& task = tasks[i];
        tiles[i] = Tile();
        if (std::memcmp(task.values, task.values + 1, task.n - 1) == 0) {
            tiles[i].kind = TileKind::constant;
            tiles[i].value = task.values[0];
            continue;
        }
        which[n_coded] = i;
        coded[n_coded++] = {task.values, task.n, task.first, task.to};
    }
    rans_encode(coder, coded, n_coded, scratch);
    for (size_t j = 0; j < n_coded; ++j) {
        const PackTask& task = tasks[which[j]];
        Tile& tile = tiles[which[j]];
        tile.kind = coded[j].size ? TileKind::rans : TileKind::raw;
        tile.size = coded[j].size ? coded[j].size : task.n;
        if (tile.kind == TileKind::raw) std::memcpy(task.to, task.values, task.n);
        tile.checksum = crc32c({task.to, tile.size});
    }
}

namespace {

const char* unpack_plain(const UnpackTask& task) {
    if (crc32c(task.packed) != task.tile.checksum) return "checksum mismatch";
    if (task.tile.kind == TileKind::raw) {
        if (task.packed.size != task.n) return "a raw tile of another size than its elements";
        std::memcpy(task.values, task.packed.data, task.n);
        return nullptr;
    }
    if (task.tile.kind == TileKind::constant) {
        if (task.packed.size != 0) return "a constant tile with packed bytes";
        std::memset(task.values, task.tile.value, task.n);
        return nullptr;
    }
    return "unknown kind";
}

}  // namespace

Failure unpack_tiles(const Coder& coder, const UnpackTask* tasks, size_t count, Scratch& scratch) noexcept {
    DecodeTask coded[kMaxChains];
    const char* problems[kMaxChains] = {};
    size_t which[kMaxChains];
    size_t n_coded = 0;
    for (size_t i = 0; i < count; ++i) {
        const UnpackTask& task = tasks[i];
        if (task.tile.kind != TileKind::rans) {
            problems[i] = unpack_plain(task);
            continue;
        }
        which[n_coded] = i;
        coded[n_coded++] = {task.packed, task.readable, task.tile.checksum, task.values, task.n, task.first};
    }
    rans_decode(coder, coded, n_coded, scratch);
    for (size_t j = 0; j < n_coded; ++j) problems[which[j]] = coded[j].problem;
    for (size_t i = 0; i < count; ++i)
        if (problems[i]) return {i, problems[i]};
    return {};
}

}  // namespace slimrun
