#include "planes.hpp"

#include "clones.hpp"

namespace slimrun {
namespace {

template <typename T>
inline T turned_left(T value) {
    return static_cast<T>((value << 1) | (value >> (8 * sizeof(T) - 1)));
}

template <typename T>
inline T turned_right(T value) {
    return static_cast<T>((value >> 1) | (value << (8 * sizeof(T) - 1)));
}

template <typename T>
inline void split(const T* values, size_t count, uint8_t* planes) {
    for (size_t j = 0; j < sizeof(T); ++j) {
        uint8_t* plane = planes + j * count;
        for (size_t i = 0; i < count; ++i) plane[i] = static_cast<uint8_t>(turned_left(values[i]) >> (8 * j));
    }
}

SLIMRUN_CLONES  // which no template takes
    void merge2(const uint8_t* planes, size_t count, uint16_t* values) {
    const uint8_t *low = planes, *high = planes + count;
    for (size_t i = 0; i < count; ++i) {
        values[i] = turned_right(static_cast<uint16_t>(low[i] | high[i] << 8));
    }
}

SLIMRUN_CLONES
void merge4(const uint8_t* planes, size_t count, uint32_t* values) {
    const uint8_t *a = planes, *b = a + count, *c = b + count, *d = c + count;
    for (size_t i = 0; i < count; ++i) {
        values[i] =
            turned_right(uint32_t{a[i]} | uint32_t{b[i]} << 8 | uint32_t{c[i]} << 16 | uint32_t{d[i]} << 24);
    }
}

SLIMRUN_CLONES
void merge8(const uint8_t* planes, size_t count, uint64_t* values) {
    for (size_t i = 0; i < count; ++i) {
        uint64_t value = 0;
        for (size_t j = 0; j < 8; ++j) value |= uint64_t{planes[j * count + i]} << (8 * j);
        values[i] = turned_right(value);
    }
}

}  // namespace

void split_planes(const void* values, size_t count, size_t width, uint8_t* planes) {
    if (width == 2) split(static_cast<const uint16_t*>(values), count, planes);
    if (width == 4) split(static_cast<const uint32_t*>(values), count, planes);
    if (width == 8) split(static_cast<const uint64_t*>(values), count, planes);
}

void merge_planes(const uint8_t* planes, size_t count, size_t width, void* values) {
    if (width == 2) merge2(planes, count, static_cast<uint16_t*>(values));
    if (width == 4) merge4(planes, count, static_cast<uint32_t*>(values));
    if (width == 8) merge8(planes, count, static_cast<uint64_t*>(values));
}

}  // namespace slimrun
