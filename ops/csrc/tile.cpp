#include "tile.hpp"

#include <cstring>

#include "crc32c.hpp"

namespace slimrun {

Tile pack_tile(const Encoder& encoder, const uint8_t* values, size_t n, Scratch& scratch,
               uint8_t* to) noexcept {
    Tile tile;
    if (std::memcmp(values, values + 1, n - 1) == 0) {
        tile.kind = TileKind::constant;
        tile.value = values[0];
        return tile;
    }
    tile.size = rans_encode(encoder, values, n, scratch, to);
    tile.kind = TileKind::rans;
    if (tile.size == 0) {
        tile.kind = TileKind::raw;
        tile.size = n;
        std::memcpy(to, values, n);
    }
    tile.checksum = crc32c({to, tile.size});
    return tile;
}

const char* unpack_tile(const Decoder& decoder, const Tile& tile, Bytes packed, uint8_t* values, size_t n,
                        Scratch& scratch) noexcept {
    if (crc32c(packed) != tile.checksum) return "checksum mismatch";
    switch (tile.kind) {
        case TileKind::rans:
            return rans_decode(decoder, packed, values, n, scratch);
        case TileKind::raw:
            if (packed.size != n) return "a raw tile of another size than its elements";
            std::memcpy(values, packed.data, n);
            return nullptr;
        case TileKind::constant:
            if (packed.size != 0) return "a constant tile with packed bytes";
            std::memset(values, tile.value, n);
            return nullptr;
    }
    return "unknown kind";
}

}  // namespace slimrun
