#include "int8.hpp"

#include <algorithm>
#include <cstring>
#include <limits>

#include "clones.hpp"

namespace slimrun {
namespace {

constexpr float kRound = 12582912.0f;                // 1.5 * 2^23: adding it leaves no bits for the fraction
constexpr double kRoundDouble = 6755399441055744.0;  // 1.5 * 2^52
constexpr float kLimit = 512.0f;  // beyond the int8 range with any offset, and far below 2^22

/// a + b that wraps instead of being undefined.
inline int32_t add(int32_t a, int32_t b) {
    return static_cast<int32_t>(static_cast<uint32_t>(a) + static_cast<uint32_t>(b));
}

}  // namespace

SLIMRUN_CLONES
void quantize(const float* x, size_t count, float scale, int32_t offset, int8_t* out) {
    for (size_t i = 0; i < count; ++i) {
        float v = x[i] / scale;
        v = v > -kLimit ? v : -kLimit;
        v = v < kLimit ? v : kLimit;
        int32_t q = static_cast<int32_t>((v + kRound) - kRound) + offset;
        q = q > -128 ? q : -128;
        q = q < 127 ? q : 127;
        out[i] = static_cast<int8_t>(q);
    }
}

SLIMRUN_CLONES
void dequantize(const int32_t* acc, size_t rows, size_t columns, const int32_t* bias, const float* scale,
                bool one_scale, float* out) {
    for (size_t r = 0; r < rows; ++r, acc += columns, out += columns) {
        if (one_scale) {
            const float s = scale[0];
            for (size_t c = 0; c < columns; ++c) out[c] = static_cast<float>(add(acc[c], bias[c])) * s;
        } else {
            for (size_t c = 0; c < columns; ++c) out[c] = static_cast<float>(add(acc[c], bias[c])) * scale[c];
        }
    }
}

SLIMRUN_CLONES
float token_scale(const float* x, size_t count) {
    int32_t most = 0;  // magnitudes are ordered as their bits are, infinity and NaN above all numbers
    for (size_t i = 0; i < count; ++i) {
        int32_t bits;
        std::memcpy(&bits, x + i, sizeof bits);
        most = std::max(most, bits & 0x7fffffff);
    }
    float largest;
    std::memcpy(&largest, &most, sizeof largest);
    if (!(largest <= std::numeric_limits<float>::max())) return std::numeric_limits<float>::quiet_NaN();
    return std::max(largest / 127.0f, std::numeric_limits<float>::epsilon());
}

SLIMRUN_CLONES
void dequantize_token(const int32_t* acc, size_t columns, float scale, const float* steps, bool one_step,
                      const float* bias, float* out) {
    if (one_step) {
        const float step = steps[0];
        for (size_t c = 0; c < columns; ++c) out[c] = static_cast<float>(acc[c]) * scale * step;
    } else {
        for (size_t c = 0; c < columns; ++c) out[c] = static_cast<float>(acc[c]) * scale * steps[c];
    }
    if (bias)
        for (size_t c = 0; c < columns; ++c) out[c] += bias[c];
}

SLIMRUN_CLONES
void grid_errors(const double* centers, const double* counts, size_t bins, const double* scales,
                 const double* offsets, size_t grids, double* errors) {
    for (size_t j = 0; j < grids; ++j) errors[j] = 0.0;
    for (size_t i = 0; i < bins; ++i) {
        const double center = centers[i], count = counts[i];
        for (size_t j = 0; j < grids; ++j) {
            double v = center / scales[j];
            v = v > -double{kLimit} ? v : -double{kLimit};
            v = v < double{kLimit} ? v : double{kLimit};
            double q = ((v + kRoundDouble) - kRoundDouble) + offsets[j];
            q = q > -128.0 ? q : -128.0;
            q = q < 127.0 ? q : 127.0;
            const double error = (q - offsets[j]) * scales[j] - center;
            errors[j] += error * error * count;
        }
    }
}

}  // namespace slimrun
