#include "bindings.hpp"
#include "feedback.hpp"

namespace py = pybind11;

namespace slimrun {
namespace {

void feedback_into(const Array<float>& w, const Array<float>& factor, const Array<float>& step,
                   const Array<float>& price, const Array<float>& row_price, const Array<float>& bits,
                   int limit, Array<int8_t> q, Array<float> e, unsigned threads) {
    require(w.ndim() == 2 && q.size() == w.size() && e.size() == w.size(),
            "q, e: must have the shape of w, a matrix");
    const py::ssize_t rows = w.shape(0), columns = w.shape(1);
    require(factor.size() == columns * columns && price.size() == columns,
            "factor, price: must have the columns of w");
    require(step.size() == rows && row_price.size() == rows, "step, row_price: must have the rows of w");
    require(bits.size() == 256, "bits: must have 256 elements");
    require(limit >= 1 && limit <= 127, "limit: must be 1 to 127");
    const FeedbackBlock block{static_cast<size_t>(rows),
                              static_cast<size_t>(columns),
                              w.data(),
                              factor.data(),
                              step.data(),
                              price.data(),
                              row_price.data(),
                              bits.data(),
                              static_cast<float>(limit)};
    float* const errors = e.mutable_data();
    int8_t* const levels = q.mutable_data();
    py::gil_scoped_release release;
    feedback(block, levels, errors, threads);
}

void code_bits_into(const Array<int8_t>& q, const Array<float>& bits, Array<float> sums, unsigned threads) {
    require(q.ndim() == 2 && sums.size() == q.shape(0), "sums: must have the rows of q, a matrix");
    require(bits.size() == 256, "bits: must have 256 elements");
    const auto rows = static_cast<size_t>(q.shape(0)), columns = static_cast<size_t>(q.shape(1));
    const int8_t* const levels = q.data();
    float* const out = sums.mutable_data();
    py::gil_scoped_release release;
    code_bits(levels, rows, columns, bits.data(), out, threads);
}

}  // namespace

void bind_feedback(py::module_& m) {
    const auto arg = [](const char* name) { return py::arg(name); };
    m.def("feedback_into", &feedback_into, arg("w").noconvert(), arg("factor").noconvert(),
          arg("step").noconvert(), arg("price").noconvert(), arg("row_price").noconvert(),
          arg("bits").noconvert(), arg("limit"), arg("q").noconvert(), arg("e").noconvert(), arg("threads"),
          "Rounding of a block of columns with error feedback; see feedback.hpp.");
    m.def("code_bits_into", &code_bits_into, arg("q").noconvert(), arg("bits").noconvert(),
          arg("sums").noconvert(), arg("threads"),
          "What the codes of each row of int8 levels take; see feedback.hpp.");
}

}  // namespace slimrun
