#include "container.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "crc32c.hpp"

namespace slimrun {
namespace {

constexpr uint8_t kMagic[4] = {'S', 'L', 'R', 'N'};
constexpr size_t kFixedInfo = 40;
constexpr size_t kChecksumAt = 12;
constexpr int kOffsetBits = 48;

void require(bool good, const std::string& problem) {
    if (!good) throw std::invalid_argument(problem);
}

std::string differ(const char* what, uint64_t is, uint64_t should) {
    return std::string(what) + " is " + std::to_string(is) + ", expected " + std::to_string(should);
}

/// The number of elements. Even around a zero the other sizes must multiply to something sane, as in numpy.
uint64_t product(const std::array<uint64_t, kMaxDims>& shape, size_t ndim) {
    uint64_t nonzero = 1;
    bool empty = false;
    for (size_t d = 0; d < ndim; ++d) {
        empty = empty || shape[d] == 0;
        if (shape[d] == 0) continue;
        require(shape[d] < kMaxElements / nonzero, "shape: 2^48 elements or more");
        nonzero *= shape[d];
    }
    return empty ? 0 : nonzero;
}

void check_tile_size(uint64_t size) {
    const bool power_of_two = (size & (size - 1)) == 0;
    require(power_of_two && size >= kMinTileSize && size <= kMaxTileSize,
            "tile_size = " + std::to_string(size) + ": must be a power of two from 4096 to 1048576");
}

uint8_t layout_byte(const ModelLayout& layout) {
    return static_cast<uint8_t>((layout.row_classes - 1) | (layout.column_classes - 1) << 4 |
                                static_cast<size_t>(layout.levels) << 5);
}

/// The model layout of an array whose elements are all alike, with its rows and columns if it has them.
ModelLayout matrix_of(const Header& header) {
    ModelLayout layout;
    const uint64_t columns = header.ndim ? header.shape[header.ndim - 1] : 0;
    if (header.numel == 0 || columns == 0 || columns % kGroup != 0) return layout;
    layout.rows = header.numel / columns;
    layout.columns = columns;
    return layout;
}

ModelLayout layout_of(uint8_t byte, ModelLayout layout) {
    layout.row_classes = size_t{byte} % 16 + 1;
    layout.column_classes = size_t{byte} / 16 % 2 + 1;
    layout.levels = byte >> 5 & 1;
    require(!layout.by_place() || layout.rows > 0,
            "info: row or column classes of an array that has no rows of 64 columns each");
    return layout;
}

uint32_t checksum(Bytes info, Bytes index) {
    const uint32_t before = crc32c({info.data, kChecksumAt});
    const uint32_t after = crc32c({info.data + kChecksumAt + 4, info.size - kChecksumAt - 4}, before);
    return crc32c(index, after);
}

}  // namespace

Header make_header(const uint64_t* shape, size_t ndim, uint64_t tile_size) {
    check_tile_size(tile_size);
    require(ndim <= kMaxDims,
            "an array of " + std::to_string(ndim) + " dimensions: the format holds up to 8");
    Header header;
    header.ndim = ndim;
    std::copy_n(shape, ndim, header.shape.begin());
    header.tile_size = tile_size;
    header.numel = product(header.shape, ndim);
    return header;
}

void write_entry(const Header& header, uint64_t t, const Tile& tile, uint8_t* index) {
    const uint64_t entry = tile.offset | uint64_t{tile.value} << kOffsetBits |
                           static_cast<uint64_t>(tile.kind) << (kOffsetBits + 8);
    index += header.model.bytes();
    store(index + 8 * t, entry);
    store(index + 8 * header.tiles() + 4 * t, tile.checksum);
}

void write_info(const Header& header, const uint8_t* index, uint8_t* info) {
    std::copy_n(kMagic, sizeof kMagic, info);
    info[4] = kVersion;
    info[5] = static_cast<uint8_t>(header.ndim);
    info[6] = layout_byte(header.model);
    info[7] = static_cast<uint8_t>(header.low_bits);
    store(info + 8, static_cast<uint32_t>(header.tile_size));
    store(info + 16, header.numel);
    store(info + 24, header.index_bytes());
    store(info + 32, header.payload_bytes);
    for (size_t d = 0; d < header.ndim; ++d) store(info + kFixedInfo + 8 * d, header.shape[d]);
    store(info + kChecksumAt, checksum({info, header.info_bytes()}, {index, header.index_bytes()}));
}

uint64_t Header::index_bound() const {
    ModelLayout largest = matrix_of(*this);
    if (largest.rows > 0) {
        largest.row_classes = kMaxRowClasses;
        largest.column_classes = kMaxColumnClasses;
        largest.levels = true;
    }
    return largest.bytes() + kIndexBytesPerTile * tiles();
}

Header read_header(Bytes info) {
    require(info.size >= kFixedInfo,
            "info: " + std::to_string(info.size) + " bytes are too few for a header");
    require(std::equal(kMagic, kMagic + sizeof kMagic, info.data),
            "info: not a slimrun container (no magic SLRN)");
    require(info.data[4] == kVersion, differ("info: version", info.data[4], kVersion));
    require(info.data[5] <= kMaxDims, "info: " + std::to_string(info.data[5]) + " dimensions, more than 8");
    require(info.data[6] < 1 << 6, "info: layout " + std::to_string(info.data[6]) + " of a later version");
    require(info.data[7] <= kMaxLowBits, "info: low_bits " + std::to_string(info.data[7]) + ", more than 7");
    Header header;
    header.ndim = info.data[5];
    header.low_bits = info.data[7];
    header.tile_size = load<uint32_t>(info.data + 8);
    header.numel = load<uint64_t>(info.data + 16);
    header.payload_bytes = load<uint64_t>(info.data + 32);
    require(info.size >= header.info_bytes(), "info: the shape is cut off");
    for (size_t d = 0; d < header.ndim; ++d) header.shape[d] = load<uint64_t>(info.data + kFixedInfo + 8 * d);
    check_tile_size(header.tile_size);
    const uint64_t numel = product(header.shape, header.ndim);
    require(header.numel == numel, differ("info: numel", header.numel, numel));
    header.model = layout_of(info.data[6], matrix_of(header));
    const uint64_t index_bytes = load<uint64_t>(info.data + 24);
    require(index_bytes == header.index_bytes(),
            differ("info: index bytes", index_bytes, header.index_bytes()));
    require(header.payload_bytes <= header.numel,
            "info: payload of " + std::to_string(header.payload_bytes) + " bytes, more than its elements");
    return header;
}

Sections split(Bytes container) {
    const Header header = read_header(container);
    const uint64_t size = header.info_bytes() + header.index_bytes() + header.payload_bytes;
    require(container.size == size, differ("container: size", container.size, size));
    const Bytes info{container.data, static_cast<size_t>(header.info_bytes())};
    const Bytes index{info.end(), static_cast<size_t>(header.index_bytes())};
    return {info, index, {index.end(), static_cast<size_t>(header.payload_bytes)}};
}

Container::Container(const Sections& sections)
    : header_(read_header(sections.info)), index_(sections.index), payload_(sections.payload) {
    require(sections.info.size == header_.info_bytes(),
            differ("info: size", sections.info.size, header_.info_bytes()));
    require(index_.size == header_.index_bytes(), differ("index: size", index_.size, header_.index_bytes()));
    require(payload_.size == header_.payload_bytes,
            differ("payload: size", payload_.size, header_.payload_bytes));
    require(load<uint32_t>(sections.info.data + kChecksumAt) == checksum(sections.info, index_),
            "info and index: checksum mismatch");
    require(!header_.model.levels || header_.low_bits == 0, "info: levels with low bits");
    model_ = read_model(index_.data, header_.low_bits, header_.model);

    uint64_t expected = 0;
    for (uint64_t t = 0; t < header_.tiles(); ++t) {
        const Tile next = tile(t);
        const char* problem = nullptr;
        if (next.kind > TileKind::constant) problem = "unknown kind";
        if (next.value != 0 && next.kind != TileKind::constant)
            problem = "a value that only a constant tile has";
        if (next.offset != expected) problem = "does not begin where the tile before it ends";
        if (next.size > header_.elements(t)) problem = "more packed bytes than elements, or fewer than none";
        if (problem) throw std::invalid_argument("tile " + std::to_string(t) + ": " + problem);
        expected += next.size;
    }
    require(expected == payload_.size, differ("payload: bytes used by tiles", expected, payload_.size));
}

Tile Container::tile(uint64_t t) const {
    const uint64_t mask = (uint64_t{1} << kOffsetBits) - 1;
    const uint8_t* const entries = index_.data + header_.model.bytes();
    const uint8_t* const entry = entries + 8 * t;
    const uint64_t bits = load<uint64_t>(entry);
    const uint64_t next = t + 1 < header_.tiles() ? load<uint64_t>(entry + 8) & mask : header_.payload_bytes;
    Tile tile;
    tile.offset = bits & mask;
    tile.size = static_cast<size_t>(next - tile.offset);
    tile.value = static_cast<uint8_t>(bits >> kOffsetBits);
    tile.kind = static_cast<TileKind>(bits >> (kOffsetBits + 8));
    tile.checksum = load<uint32_t>(entries + 8 * header_.tiles() + 4 * t);
    return tile;
}

}  // namespace slimrun
