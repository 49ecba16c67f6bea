// The coder of compress_executor on any machine: nz.hpp.
#include "executor.hpp"
#include "nz.hpp"

namespace slimrun {

const char* const kContainer = "slimrun-nz 1";

Compressed compress(const Request& request, const std::vector<uint8_t>& values) {
    const Fractals fractals = make_fractals(request.dim_k, request.dim_n);
    Compressed coded;
    coded.out.resize(fractals.payload_bound());
    coded.index.resize(fractals.index_bytes());
    coded.out.resize(nz_encode(fractals, values.data(), 0, coded.out.data(), coded.index.data()));
    coded.tiling_n = coded.tiling_k = kTiling;
    return coded;
}

}  // namespace slimrun
