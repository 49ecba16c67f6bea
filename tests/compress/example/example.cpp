// An int8 matrix -> a container -> the same matrix.
#include <cstdio>
#include <slimrun/codec.hpp>

int main() {
    const uint64_t shape[] = {256, 512};
    std::vector<uint8_t> weight(256 * 512), again(weight.size());
    for (size_t i = 0; i < weight.size(); ++i)
        weight[i] = static_cast<uint8_t>(i * i % 7 - 3);  // int8 as bytes

    const slimrun::Header header = slimrun::make_header(shape, 2, 1 << 16);
    std::vector<uint8_t> packed(slimrun::encode_bound(header));
    packed.resize(slimrun::encode(header, weight.data(), 0, packed.data()));

    const slimrun::Container container(slimrun::split({packed.data(), packed.size()}));
    slimrun::decode(container, 0, again.data());
    std::printf("%zu bytes, then %zu, %s\n", weight.size(), packed.size(),
                again == weight ? "equal" : "different");
    return again == weight ? 0 : 1;
}
