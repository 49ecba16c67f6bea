#include "bindings.hpp"
#include "weights.hpp"

namespace py = pybind11;

namespace slimrun {
namespace {

/// A matrix of float32, or of words of two bytes that are float16 or, with `bfloat16`, that.
Weights weights_of(const py::array& array, bool bfloat16) {
    require(array.ndim() == 2 && (array.flags() & py::array::c_style),
            "weights: must be a C-contiguous matrix");
    require(array.itemsize() == 2 || (array.itemsize() == 4 && !bfloat16),
            "weights: numbers must have 4 bytes, or 2");
    const Number narrow = bfloat16 ? Number::bfloat16 : Number::float16;
    return {array.data(), array.itemsize() == 4 ? Number::float32 : narrow,
            static_cast<size_t>(array.shape(0)), static_cast<size_t>(array.shape(1))};
}

bool has_rows(const py::array& array, const Weights& weights) {
    return static_cast<size_t>(array.size()) == weights.rows;
}

bool has_shape(const py::array& array, const Weights& weights) {
    return array.ndim() == 2 && static_cast<size_t>(array.shape(0)) == weights.rows &&
           static_cast<size_t>(array.shape(1)) == weights.columns;
}

void extremes_into(const py::array& array, bool bfloat16, float threshold, Array<float> normal,
                   Array<float> largest, unsigned threads) {
    const Weights weights = weights_of(array, bfloat16);
    require(has_rows(normal, weights) && has_rows(largest, weights), "normal, largest: must have the rows");
    require(threshold >= 0, "threshold: must be 0 or more");
    float *const usual = normal.mutable_data(), *const most = largest.mutable_data();
    py::gil_scoped_release release;
    extremes(weights, threshold, usual, most, threads);
}

float select_magnitude(const py::array& array, bool bfloat16, size_t count, float guess, unsigned threads) {
    const Weights weights = weights_of(array, bfloat16);
    require(count > 0 && guess > 0, "count, guess: must be above 0");
    py::gil_scoped_release release;
    return select(weights, count, guess, threads);
}

void round_into(const py::array& array, bool bfloat16, const Array<float>& steps, int low, int high,
                Array<int8_t> out, unsigned threads) {
    const Weights weights = weights_of(array, bfloat16);
    require(has_rows(steps, weights) && has_shape(out, weights),
            "steps, out: must have the rows, and the shape");
    require(-128 <= low && low <= high && high <= 127, "low, high: must be within -128 to 127");
    int8_t* const to = out.mutable_data();
    py::gil_scoped_release release;
    round(weights, steps.data(), low, high, to, threads);
}

void errors_into(const py::array& array, bool bfloat16, const Array<float>& steps,
                 const Array<int8_t>& values, float share, Array<double> noise, Array<double> signal,
                 Array<uint32_t> cut, unsigned threads) {
    const Weights weights = weights_of(array, bfloat16);
    require(has_shape(values, weights), "values: must have the shape of the weights");
    require(has_rows(steps, weights) && has_rows(noise, weights) && has_rows(signal, weights) &&
                has_rows(cut, weights),
            "steps, noise, signal, cut: must have the rows of the weights");
    double *const lost = noise.mutable_data(), *const all = signal.mutable_data();
    uint32_t* const counts = cut.mutable_data();
    py::gil_scoped_release release;
    errors(weights, steps.data(), values.data(), share, lost, all, counts, threads);
}

void row_sums_into(const Array<int8_t>& values, Array<int32_t> sums, unsigned threads) {
    require(values.ndim() == 2 && sums.size() == values.shape(0), "sums: must have the rows of a matrix");
    const size_t rows = static_cast<size_t>(values.shape(0)), columns = static_cast<size_t>(values.shape(1));
    int32_t* const to = sums.mutable_data();
    py::gil_scoped_release release;
    row_sums(values.data(), rows, columns, to, threads);
}

}  // namespace

void bind_weights(py::module_& m) {
    const auto arg = [](const char* name) { return py::arg(name); };
    m.def("extremes_into", &extremes_into, arg("weights"), arg("bfloat16"), arg("threshold"),
          arg("normal").noconvert(), arg("largest").noconvert(), arg("threads"),
          "Largest magnitude of each row, and largest up to a threshold; see weights.hpp.");
    m.def("select_magnitude", &select_magnitude, arg("weights"), arg("bfloat16"), arg("count"), arg("guess"),
          arg("threads"), "The count-th largest magnitude, -1 where it is below the guess; see weights.hpp.");
    m.def("round_into", &round_into, arg("weights"), arg("bfloat16"), arg("steps").noconvert(), arg("low"),
          arg("high"), arg("out").noconvert(), arg("threads"), "Rounding to a grid by row; see weights.hpp.");
    m.def("errors_into", &errors_into, arg("weights"), arg("bfloat16"), arg("steps").noconvert(),
          arg("values").noconvert(), arg("share"), arg("noise").noconvert(), arg("signal").noconvert(),
          arg("cut").noconvert(), arg("threads"), "What rounding lost, by row; see weights.hpp.");
    m.def("row_sums_into", &row_sums_into, arg("values").noconvert(), arg("sums").noconvert(), arg("threads"),
          "Sums of int8 rows; see weights.hpp.");
}

}  // namespace slimrun
