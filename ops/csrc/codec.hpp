// Codec: int8 array -> container -> int8 array, a thread a tile. The functions to call from outside.
//
//   std::vector<uint8_t> packed(encode_bound(header));
//   packed.resize(encode(header, values, threads, packed.data()));
//   const Container container(split({packed.data(), packed.size()}));
//   decode(container, threads, values);
#pragma once

#include <vector>

#include "container.hpp"

namespace slimrun {

/// Bytes that encode() may use: the elements themselves and the other two sections in full.
uint64_t encode_bound(const Header& header);

/// Writes a container of the header.numel `values`, sections one after the other, to `to`, which has room for
/// encode_bound bytes. Returns its size. low_bits and payload_bytes of the header are chosen here. The bytes
/// do not depend on `threads` (0: every core).
uint64_t encode(Header header, const uint8_t* values, size_t threads, uint8_t* to);

/// Verifies and decodes all elements into `values`. Throws std::invalid_argument that names the first bad
/// tile.
void decode(const Container& container, size_t threads, uint8_t* values);

/// The same of numbers of as many bytes as there are `planes` (2, 4 or 8; planes.hpp), lowest byte first. All
/// planes must have one shape and tile size. A batch of tiles is decoded and merged while it is in the cache.
void decode_numbers(const std::vector<const Container*>& planes, size_t threads, uint8_t* values);

/// Verifies and decodes the elements of tile `t` < tiles() alone.
void decode_tile(const Container& container, uint64_t t, uint8_t* values);

}  // namespace slimrun
