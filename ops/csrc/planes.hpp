// Floating-point numbers as planes of bytes, so that what is alike lies together.
//
// Each number of w bytes is turned left by one bit, which puts the sign last and the exponent into the
// highest byte; plane j holds byte j of all numbers, the lowest first. The highest plane of trained weights
// takes about 2.7 bits a number instead of 8; planes of mantissa are noise, unless the numbers were narrower
// ones before: then the lowest planes are zero. Any bit pattern comes back, whatever it means as a number.
#pragma once

#include <cstddef>
#include <cstdint>

namespace slimrun {

/// values [count], each of `width` bytes (2, 4 or 8; aligned to it) -> planes [width][count].
void split_planes(const void* values, size_t count, size_t width, uint8_t* planes);

/// The way back: planes [width][count] -> values [count].
void merge_planes(const uint8_t* planes, size_t count, size_t width, void* values);

}  // namespace slimrun
