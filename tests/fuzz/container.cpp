// Fuzz target (libFuzzer): opens and decodes any bytes as a container, by every kernel that the processor
// has.
//
// Each input is tried as it is and with its checksums made right, as damage would otherwise never get past
// them. What must hold: no read or write out of bounds (AddressSanitizer), nothing undefined
// (UndefinedBehaviorSanitizer), no exception but std::invalid_argument, no more memory than the format
// bounds, and all kernels agree on the answer.
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "codec.hpp"
#include "crc32c.hpp"
#include "kernels.hpp"
#include "nz.hpp"

using namespace slimrun;

namespace {

constexpr uint64_t kMostElements = 1 << 22;  // a small input may claim a lot: no bug, but slow

/// What came out: values, or the reason why none did.
struct Answer {
    std::string problem;
    std::vector<uint8_t> values;
    bool operator==(const Answer& other) const { return problem == other.problem && values == other.values; }
};

/// A copy of exactly the right size, so that a read behind its end is seen.
struct Copy {
    explicit Copy(Bytes bytes) : memory(new uint8_t[bytes.size]), size(bytes.size) {
        std::copy(bytes.data, bytes.end(), memory.get());
    }
    Bytes bytes() const { return {memory.get(), size}; }
    std::unique_ptr<uint8_t[]> memory;
    size_t size;
};

template <class Decode>
Answer answer(const Decode& decode_with) {
    Answer found;
    try {
        found.values = decode_with();
    } catch (const std::invalid_argument& error) {
        found.problem = error.what();
        if (found.problem.empty() || found.problem.find('\n') != std::string::npos) std::abort();
    }
    return found;
}

/// The same from all kernels, or the end.
template <class Decode>
void agree(const Decode& decode_with) {
    const char* const names[] = {"scalar", "avx2", "avx512", "neon"};
    setenv("SLIMRUN_SIMD", "scalar", 1);
    const Answer first = answer(decode_with);
    for (const char* name : names) {
        setenv("SLIMRUN_SIMD", name, 1);
        try {
            kernels();
        } catch (const std::invalid_argument&) {
            continue;
        }
        if (!(answer(decode_with) == first)) std::abort();
    }
}

void decode_container(Bytes input) {
    agree([&] {
        const Copy copy(input);
        const Container container(split(copy.bytes()));
        if (container.header().numel > kMostElements)
            throw std::invalid_argument("too many elements to fuzz");
        std::vector<uint8_t> values(static_cast<size_t>(container.header().numel));
        decode(container, 1, values.data());
        for (uint64_t t = 0; t < std::min<uint64_t>(container.header().tiles(), 2); ++t) {
            std::vector<uint8_t> alone(container.header().elements(t));
            decode_tile(container, t, alone.data());
            if (!std::equal(alone.begin(), alone.end(), values.begin() + t * container.header().tile_size))
                std::abort();
        }
        return values;
    });
}

/// Payload and index of an NZ container: the last eighth of the input is the index.
void decode_nz(Bytes input) {
    const size_t index_size = input.size / 8 / kNzIndexBytesPerTile * kNzIndexBytesPerTile;
    agree([&] {
        const Copy payload({input.data, input.size - index_size});
        const Copy index({input.end() - index_size, index_size});
        const NzContainer container(payload.bytes(), index.bytes());
        if (container.fractals().bytes() > kMostElements)
            throw std::invalid_argument("too many elements to fuzz");
        std::vector<uint8_t> values(static_cast<size_t>(container.fractals().bytes()));
        nz_decode(container, 1, values.data());
        return values;
    });
}

/// Makes the checksums right, as far as the sizes allow.
void seal(std::vector<uint8_t>& bytes) {
    if (bytes.size() < 40) return;
    const size_t info = 40 + 8 * size_t{bytes[5]};
    const uint64_t index = load<uint64_t>(&bytes[24]), payload = load<uint64_t>(&bytes[32]);
    const uint64_t numel = load<uint64_t>(&bytes[16]), tile_size = load<uint32_t>(&bytes[8]);
    if (tile_size == 0 || numel > kMostElements || index > bytes.size() || payload > bytes.size()) return;
    const uint64_t tiles = (numel + tile_size - 1) / tile_size;
    if (info + index + payload != bytes.size() || 12 * tiles > index) return;
    uint8_t* const entries = &bytes[info + index - 12 * tiles];
    const uint64_t mask = (uint64_t{1} << 48) - 1;
    for (uint64_t t = 0; t < tiles; ++t) {
        const uint64_t begin = load<uint64_t>(entries + 8 * t) & mask;
        const uint64_t end = t + 1 < tiles ? load<uint64_t>(entries + 8 * t + 8) & mask : payload;
        if (begin > end || end > payload) return;
        const Bytes tile{bytes.data() + info + index + begin, static_cast<size_t>(end - begin)};
        store(entries + 8 * tiles + 4 * t, crc32c(tile));
    }
    const uint32_t before = crc32c({bytes.data(), 12});
    store(&bytes[12], crc32c({bytes.data() + 16, static_cast<size_t>(info + index - 16)}, before));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    decode_container({data, size});
    decode_nz({data, size});
    std::vector<uint8_t> sealed(data, data + size);
    seal(sealed);
    decode_container({sealed.data(), sealed.size()});
    return 0;
}
