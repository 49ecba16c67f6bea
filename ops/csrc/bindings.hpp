// What the files of the Python module share: bindings.cpp and, beside it, bindings_feedback.cpp,
// bindings_int8.cpp and bindings_weights.cpp.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <stdexcept>

namespace slimrun {

template <typename T>
using Array = pybind11::array_t<T, pybind11::array::c_style>;

inline void require(bool ok, const char* what) {
    if (!ok) throw std::invalid_argument(what);
}

/// The functions of feedback.hpp.
void bind_feedback(pybind11::module_& m);

/// The functions of int8.hpp and int8_product.hpp.
void bind_int8(pybind11::module_& m);

/// The functions of weights.hpp.
void bind_weights(pybind11::module_& m);

}  // namespace slimrun
