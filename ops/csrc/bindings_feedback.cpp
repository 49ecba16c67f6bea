#include <vector>

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

/// The rows of a matrix in an order of its columns, of which each is named once.
OrderedRows ordered(const py::buffer_info& matrix, const Array<int32_t>& order) {
    require(matrix.ndim == 2 && order.size() == matrix.shape[1], "order: must name each column of a matrix");
    const auto rows = static_cast<size_t>(matrix.shape[0]), columns = static_cast<size_t>(matrix.shape[1]);
    std::vector<bool> named(columns);
    for (size_t j = 0; j < columns; ++j) {
        const int32_t column = order.data()[j];
        require(column >= 0 && static_cast<size_t>(column) < columns && !named[static_cast<size_t>(column)],
                "order: must name each column of a matrix");
        named[static_cast<size_t>(column)] = true;
    }
    return {rows, columns, order.data()};
}

void in_order_into(const Array<float>& w, const Array<int32_t>& order, const Array<float>& step, int limit,
                   Array<float> exact, Array<int8_t> plain, Array<float> missed, unsigned threads) {
    const OrderedRows of = ordered(w.request(), order);
    require(exact.size() == w.size() && plain.size() == w.size() && missed.size() == w.size(),
            "exact, plain, missed: must have the shape of w");
    require(step.size() == w.shape(0), "step: must have the rows of w");
    require(limit >= 1 && limit <= 127, "limit: must be 1 to 127");
    const float *const from = w.data(), *const steps = step.data();
    float *const to = exact.mutable_data(), *const misses = missed.mutable_data();
    int8_t* const levels = plain.mutable_data();
    py::gil_scoped_release release;
    in_order(of, from, steps, static_cast<float>(limit), to, levels, misses, threads);
}

void out_of_order_into(const Array<int8_t>& fed, const Array<int8_t>& plain, const Array<bool>& takes,
                       const Array<int32_t>& order, Array<int8_t> q, unsigned threads) {
    const OrderedRows of = ordered(fed.request(), order);
    require(plain.size() == fed.size() && q.size() == fed.size(), "plain, q: must have the shape of fed");
    require(takes.size() == fed.shape(0), "takes: must have the rows of fed");
    const int8_t *const one = fed.data(), *const other = plain.data();
    const bool* const which = takes.data();
    int8_t* const levels = q.mutable_data();
    py::gil_scoped_release release;
    out_of_order(of, one, other, which, levels, threads);
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
    m.def("in_order_into", &in_order_into, arg("w").noconvert(), arg("order").noconvert(),
          arg("step").noconvert(), arg("limit"), arg("exact").noconvert(), arg("plain").noconvert(),
          arg("missed").noconvert(), arg("threads"),
          "Rows in the order of their rounding, with the nearest integers and what these miss; see "
          "feedback.hpp.");
    m.def("out_of_order_into", &out_of_order_into, arg("fed").noconvert(), arg("plain").noconvert(),
          arg("takes").noconvert(), arg("order").noconvert(), arg("q").noconvert(), arg("threads"),
          "One of two roundings for each row, its columns where they were; see feedback.hpp.");
    m.def("code_bits_into", &code_bits_into, arg("q").noconvert(), arg("bits").noconvert(),
          arg("sums").noconvert(), arg("threads"),
          "What the codes of each row of int8 levels take; see feedback.hpp.");
}

}  // namespace slimrun
