#include <pybind11/stl.h>

#include "bindings.hpp"
#include "int8.hpp"
#include "int8_product.hpp"
#include "int8_tiles.hpp"
#include "threads.hpp"

namespace py = pybind11;

namespace slimrun {
namespace {

constexpr size_t kElements = size_t{1} << 16;  // of a part; to start a thread takes as long as half of one
constexpr uint64_t kParts =
    8;  // worth a thread: the core may be one on which OpenMP's waits for its next work

/// Calls work(first, count) for parts of so many items, each of so many elements, on up to `threads` threads.
template <class Work>
void in_parts(size_t items, size_t elements, unsigned threads, const Work& work) {
    const size_t part = std::max<size_t>(1, kElements / std::max<size_t>(1, elements));
    const uint64_t parts = (items + part - 1) / part;
    run_tasks(parts, worker_count(threads, parts / kParts), [&](size_t, uint64_t task) -> const char* {
        const size_t first = static_cast<size_t>(task) * part;
        work(first, std::min(part, items - first));
        return nullptr;
    });
}

void quantize_into(const Array<float>& x, float scale, int32_t offset, Array<int8_t> out, unsigned threads) {
    require(x.size() == out.size(), "out: must have as many elements as x");
    int8_t* const to = out.mutable_data();
    const float* const from = x.data();
    const size_t size = static_cast<size_t>(x.size());
    py::gil_scoped_release release;
    in_parts(size, 1, threads,
             [&](size_t first, size_t count) { quantize(from + first, count, scale, offset, to + first); });
}

void dequantize_into(const Array<int32_t>& acc, const Array<int32_t>& bias, const Array<float>& scale,
                     Array<float> out, unsigned threads) {
    require(acc.ndim() == 2 && acc.size() == out.size(), "out: must have the shape of acc, a matrix");
    const size_t rows = static_cast<size_t>(acc.shape(0)), columns = static_cast<size_t>(acc.shape(1));
    require(bias.size() == acc.shape(1), "bias: must have one element a column of acc");
    require(scale.size() == acc.shape(1) || scale.size() == 1,
            "scale: must have one element, or one a column of acc");
    float* const to = out.mutable_data();
    py::gil_scoped_release release;
    in_parts(rows, columns, threads, [&](size_t first, size_t count) {
        dequantize(acc.data() + first * columns, count, columns, bias.data(), scale.data(), scale.size() == 1,
                   to + first * columns);
    });
}

void multiply_into(const Array<int8_t>& x, const Array<int8_t>& w, Array<int32_t> out, unsigned threads,
                   bool portable) {
    require(x.ndim() == 2 && w.ndim() == 2 && x.shape(1) == w.shape(1),
            "x, w: must be matrices of equally long rows");
    require(out.ndim() == 2 && out.shape(0) == x.shape(0) && out.shape(1) == w.shape(0),
            "out: must have the rows of x, and a column a row of w");
    int32_t* const to = out.mutable_data();
    py::gil_scoped_release release;
    multiply(x.data(), static_cast<size_t>(x.shape(0)), w.data(), static_cast<size_t>(w.shape(0)),
             static_cast<size_t>(x.shape(1)), to, threads, portable);
}

/// x [rows, depth], w [columns, depth], out [rows, columns], and one number, or one a column.
void require_linear(const Array<float>& x, const Array<int8_t>& w, const Array<float>& steps,
                    const Array<float>& out) {
    require(x.ndim() == 2 && w.ndim() == 2 && x.shape(1) == w.shape(1),
            "x, w: must be matrices of equally long rows");
    require(out.ndim() == 2 && out.shape(0) == x.shape(0) && out.shape(1) == w.shape(0),
            "out: must have the rows of x, and a column a row of w");
    require(steps.size() == w.shape(0) || steps.size() == 1,
            "steps: must have one element, or one a column of out");
}

void static_linear_into(const Array<float>& x, float scale, int32_t offset, const Array<int8_t>& w,
                        const Array<int32_t>& bias, const Array<float>& steps, Array<float> out,
                        unsigned threads) {
    require_linear(x, w, steps, out);
    require(bias.size() == w.shape(0), "bias: must have one element a column of out");
    float* const to = out.mutable_data();
    py::gil_scoped_release release;
    static_linear(x.data(), static_cast<size_t>(x.shape(0)), scale, offset, w.data(),
                  static_cast<size_t>(w.shape(0)), static_cast<size_t>(x.shape(1)), bias.data(), steps.data(),
                  steps.size() == 1, to, threads);
}

void dynamic_linear_into(const Array<float>& x, const Array<int8_t>& w, const Array<float>& steps,
                         const std::optional<Array<float>>& bias, Array<float> out, unsigned threads) {
    require_linear(x, w, steps, out);
    require(!bias || bias->size() == w.shape(0), "bias: must have one element a column of out");
    float* const to = out.mutable_data();
    py::gil_scoped_release release;
    dynamic_linear(x.data(), static_cast<size_t>(x.shape(0)), w.data(), static_cast<size_t>(w.shape(0)),
                   static_cast<size_t>(x.shape(1)), steps.data(), steps.size() == 1,
                   bias ? bias->data() : nullptr, to, threads);
}

void histogram_errors(const Array<double>& centers, const Array<double>& counts, const Array<double>& scales,
                      const Array<double>& offsets, Array<double> errors) {
    require(centers.size() == counts.size(), "counts: must have as many elements as centers");
    require(scales.size() == offsets.size() && scales.size() == errors.size(),
            "scales, offsets, errors: must have as many elements as each other");
    double* const to = errors.mutable_data();
    py::gil_scoped_release release;
    grid_errors(centers.data(), counts.data(), static_cast<size_t>(centers.size()), scales.data(),
                offsets.data(), static_cast<size_t>(scales.size()), to);
}

}  // namespace

void bind_int8(py::module_& m) {
    using py::arg;
    m.def("quantize_into", &quantize_into, arg("x").noconvert(), arg("scale"), arg("offset"),
          arg("out").noconvert(), arg("threads"),
          "Static int8 quantization of float32 values; see int8.hpp.");
    m.def("dequantize_into", &dequantize_into, arg("acc").noconvert(), arg("bias").noconvert(),
          arg("scale").noconvert(), arg("out").noconvert(), arg("threads"),
          "float(acc + bias) * scale by column; see int8.hpp.");
    m.def("multiply_into", &multiply_into, arg("x").noconvert(), arg("w").noconvert(), arg("out").noconvert(),
          arg("threads"), arg("portable") = false,
          "Exact int32 product of int8 x and w transposed; see int8_product.hpp.");
    m.def("static_linear_into", &static_linear_into, arg("x").noconvert(), arg("scale"), arg("offset"),
          arg("w").noconvert(), arg("bias").noconvert(), arg("steps").noconvert(), arg("out").noconvert(),
          arg("threads"), "quantize, multiply, dequantize; see int8_product.hpp.");
    m.def("dynamic_linear_into", &dynamic_linear_into, arg("x").noconvert(), arg("w").noconvert(),
          arg("steps").noconvert(), arg("bias").noconvert(), arg("out").noconvert(), arg("threads"),
          "The same with a scale a row of x; see int8_product.hpp.");
    m.def("grid_errors", &histogram_errors, arg("centers").noconvert(), arg("counts").noconvert(),
          arg("scales").noconvert(), arg("offsets").noconvert(), arg("errors").noconvert(),
          "Squared quantization error of a histogram on each grid; see int8.hpp.");
    m.def("multiplies_fast", &multiplies_fast, "Whether multiply_into has kernels for this processor.");
}

}  // namespace slimrun
