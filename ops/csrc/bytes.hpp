// Bytes: a borrowed range of memory, and little-endian integers in it whatever the host's byte order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace slimrun {

/// A range of memory that somebody else owns.
struct Bytes {
    const uint8_t* data = nullptr;
    size_t size = 0;

    const uint8_t* end() const { return data + size; }
};

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
inline constexpr bool kLittleEndian = true;
#else
inline constexpr bool kLittleEndian = false;
#endif

/// Reads an unsigned little-endian integer.
template <class T>
inline T load(const uint8_t* from) {
    T value = 0;
    if (kLittleEndian) {
        std::memcpy(&value, from, sizeof value);
        return value;
    }
    for (size_t i = 0; i < sizeof(T); ++i) value = static_cast<T>(value | static_cast<T>(from[i]) << (8 * i));
    return value;
}

/// Writes an unsigned little-endian integer.
template <class T>
inline void store(uint8_t* to, T value) {
    if (kLittleEndian) {
        std::memcpy(to, &value, sizeof value);
        return;
    }
    for (size_t i = 0; i < sizeof(T); ++i) to[i] = static_cast<uint8_t>(value >> (8 * i));
}

}  // namespace slimrun
