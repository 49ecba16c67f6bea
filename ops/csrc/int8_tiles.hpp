// The kernels of the int8 product: some rows of x beside some rows of w, as far as they fit the caches.
#pragma once

#include <cstddef>
#include <cstdint>

namespace slimrun {

constexpr int kShift = 128;  // makes int8 unsigned

/// The product of a block of x and of columns, which are rows of w, in the place of what `out` holds, or,
/// when `more`, added to it.
struct Block {
    const int16_t* wide;    // x [rows, stride], padded with zeros to a multiple of 64
    const uint8_t* narrow;  // the same numbers + kShift, or null: then magnitudes and row_sums are not read
    size_t rows, stride;
    const int8_t* w;  // [columns, depth], rows lie `apart`
    size_t columns, apart, depth;
    const uint8_t* magnitudes;  // [columns]: the largest of the whole row of w
    const int32_t* row_sums;    // [columns]: of the whole row of w
    int32_t* out;               // [rows, columns], rows lie `out_apart`
    size_t out_apart;
    bool more;
};

using BlockProduct = void (*)(const Block&);

/// The best for this processor, or the portable one.
BlockProduct block_product(bool portable);

/// The largest magnitude and the sum of each row of w [columns, depth].
void scan(const int8_t* w, size_t columns, size_t depth, uint8_t* magnitudes, int32_t* row_sums);

/// Whether there are kernels for this processor; without them few rows of x are all that is worth it.
bool multiplies_fast();

}  // namespace slimrun
