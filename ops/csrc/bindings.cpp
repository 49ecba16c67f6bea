// Bindings: the codec and the int8 kernels as functions on numpy arrays. Python checks dtypes and shapes and
// allocates; see ops/compress/__init__.py and ops/quant/base.py. std::invalid_argument becomes ValueError.
#include "bindings.hpp"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <utility>

#include "codec.hpp"
#include "crc32c.hpp"
#include "kernels.hpp"
#include "nz.hpp"
#include "planes.hpp"

namespace py = pybind11;

namespace slimrun {
namespace {

/// The memory of a C-contiguous array, whatever its item type.
Bytes bytes_of(const py::array& array) {
    if (!(array.flags() & py::array::c_style)) throw std::invalid_argument("array: must be C-contiguous");
    return {static_cast<const uint8_t*>(array.data()), static_cast<size_t>(array.nbytes())};
}

/// The same, to write `size` bytes into.
uint8_t* writable(py::array& array, uint64_t size) {
    if (bytes_of(array).size != size)
        throw std::invalid_argument("out: " + std::to_string(array.nbytes()) + " bytes, expected " +
                                    std::to_string(size));
    return static_cast<uint8_t*>(array.mutable_data());
}

size_t thread_count(int threads) {
    if (threads < 0)
        throw std::invalid_argument("threads = " + std::to_string(threads) +
                                    ": must be 0 (every core) or more");
    return static_cast<size_t>(threads);
}

Header header_of(const py::array& values, uint64_t tile_size) {
    const std::vector<uint64_t> shape(values.shape(), values.shape() + values.ndim());
    return make_header(shape.data(), shape.size(), tile_size);
}

uint64_t encode_into(const py::array& values, py::array out, uint64_t tile_size, int threads) {
    const Header header = header_of(values, tile_size);
    const Bytes from = bytes_of(values);
    if (from.size != header.numel) throw std::invalid_argument("values: elements must be one byte each");
    uint8_t* const to = writable(out, encode_bound(header));
    const size_t workers = thread_count(threads);
    py::gil_scoped_release release;
    return encode(header, from.data, workers, to);
}

/// A validated container and the arrays that it is a view of.
class OpenContainer {
  public:
    OpenContainer(py::array info, py::array index, py::array payload)
        : arrays_{std::move(info), std::move(index), std::move(payload)},
          container_(Sections{bytes_of(arrays_[0]), bytes_of(arrays_[1]), bytes_of(arrays_[2])}) {}

    const Header& header() const { return container_.header(); }
    const Container& container() const { return container_; }

    py::tuple shape() const {
        py::tuple shape(header().ndim);
        for (size_t d = 0; d < header().ndim; ++d) shape[d] = header().shape[d];
        return shape;
    }

    void decode_into(py::array out, int threads) const {
        uint8_t* const to = writable(out, header().numel);
        const size_t workers = thread_count(threads);
        py::gil_scoped_release release;
        decode(container_, workers, to);
    }

    py::array_t<int8_t> unpack_one(int64_t t) const {
        const uint64_t tiles = header().tiles();
        if (t < 0 || static_cast<uint64_t>(t) >= tiles)
            throw std::invalid_argument("tile " + std::to_string(t) + ": the container has " +
                                        std::to_string(tiles) + " tiles");
        py::array_t<int8_t> out(static_cast<py::ssize_t>(header().elements(t)));
        decode_tile(container_, t, reinterpret_cast<uint8_t*>(out.mutable_data()));
        return out;
    }

    py::tuple tiles() const {
        const uint64_t count = header().tiles();
        py::array_t<uint32_t> sizes(static_cast<py::ssize_t>(count));
        py::array_t<uint8_t> kinds(static_cast<py::ssize_t>(count));
        for (uint64_t t = 0; t < count; ++t) {
            const Tile tile = container_.tile(t);
            sizes.mutable_data()[t] = static_cast<uint32_t>(tile.size);
            kinds.mutable_data()[t] = static_cast<uint8_t>(tile.kind);
        }
        return py::make_tuple(sizes, kinds);
    }

  private:
    py::array arrays_[3];
    Container container_;
};

py::tuple section_sizes(const py::array& container) {
    const Sections sections = split(bytes_of(container));
    return py::make_tuple(sections.info.size, sections.index.size, sections.payload.size);
}

/// The width of the numbers of an array of planes [width, ...], whose memory has to be that of `values`.
size_t width_of(const py::array& values, const py::array& planes) {
    const py::ssize_t width = values.itemsize();
    if (width != 2 && width != 4 && width != 8)
        throw std::invalid_argument("values: numbers must be of 2, 4 or 8 bytes");
    if (planes.itemsize() != 1 || planes.ndim() < 1 || planes.shape(0) != width)
        throw std::invalid_argument("planes: must be one byte each, one plane a byte of a number");
    return static_cast<size_t>(width);
}

void split_into(const py::array& values, py::array planes) {
    const size_t width = width_of(values, planes);
    const Bytes from = bytes_of(values);
    uint8_t* const to = writable(planes, from.size);
    py::gil_scoped_release release;
    split_planes(from.data, from.size / width, width, to);
}

void decode_numbers_into(const std::vector<const OpenContainer*>& planes, py::array values, int threads) {
    std::vector<const Container*> containers;
    for (const OpenContainer* plane : planes) containers.push_back(&plane->container());
    if (planes.size() != static_cast<size_t>(values.itemsize()) ||
        (planes.size() != 2 && planes.size() != 4 && planes.size() != 8))
        throw std::invalid_argument("planes: must be as many as a number has bytes, 2, 4 or 8");
    const Header& header = containers[0]->header();
    for (const Container* plane : containers)
        if (plane->header().numel != header.numel || plane->header().tile_size != header.tile_size)
            throw std::invalid_argument("planes: must have one shape and tile size");
    uint8_t* const to = writable(values, header.numel * planes.size());
    const size_t workers = thread_count(threads);
    py::gil_scoped_release release;
    decode_numbers(containers, workers, to);
}

void merge_into(const py::array& planes, py::array values) {
    const size_t width = width_of(values, planes);
    const Bytes from = bytes_of(planes);
    uint8_t* const to = writable(values, from.size);
    py::gil_scoped_release release;
    merge_planes(from.data, from.size / width, width, to);
}

Fractals fractals_of(const py::array& values) {
    const bool shaped = values.ndim() == 4 && values.itemsize() == 1 && values.shape(2) == kFractalRows &&
                        values.shape(3) == kFractalColumns;
    if (!shaped) throw std::invalid_argument("fractals: must be one byte each of shape (k1, n1, 16, 32)");
    return make_fractals(static_cast<uint64_t>(values.shape(0)), static_cast<uint64_t>(values.shape(1)));
}

py::tuple nz_sizes(const py::array& values) {
    const Fractals fractals = fractals_of(values);
    return py::make_tuple(fractals.payload_bound(), fractals.index_bytes());
}

uint64_t nz_encode_into(const py::array& values, py::array payload, py::array index, int threads) {
    const Fractals fractals = fractals_of(values);
    const Bytes from = bytes_of(values);
    uint8_t* const to = writable(payload, fractals.payload_bound());
    uint8_t* const entries = writable(index, fractals.index_bytes());
    const size_t workers = thread_count(threads);
    py::gil_scoped_release release;
    return nz_encode(fractals, from.data, workers, to, entries);
}

py::tuple nz_inspect(const py::array& payload, const py::array& index) {
    const Fractals fractals = NzContainer(bytes_of(payload), bytes_of(index)).fractals();
    return py::make_tuple(fractals.k1, fractals.n1);
}

void nz_decode_into(const py::array& payload, const py::array& index, py::array out, int threads) {
    const NzContainer container(bytes_of(payload), bytes_of(index));
    uint8_t* const to = writable(out, container.fractals().bytes());
    const size_t workers = thread_count(threads);
    py::gil_scoped_release release;
    nz_decode(container, workers, to);
}

uint32_t checksum(const py::array& data, bool portable) {
    const Bytes bytes = bytes_of(data);
    py::gil_scoped_release release;
    return portable ? crc32c_portable(bytes) : crc32c(bytes);
}

double entropy(const py::array& values) {
    const Bytes from = bytes_of(values);
    py::gil_scoped_release release;
    Histogram counts{};
    count(from, counts);
    return entropy_bits(counts);
}

}  // namespace
}  // namespace slimrun

PYBIND11_MODULE(_native, m) {
    using namespace slimrun;
    using py::arg;
    m.doc() =
        "Tile-indexed entropy codec for int8 arrays, and the int8 linear's elementwise kernels; the headers "
        "of "
        "ops/csrc describe both.";
    m.attr("VERSION") = static_cast<int>(kVersion);
    m.def(
        "encode_bound", [](const py::array& v, uint64_t size) { return encode_bound(header_of(v, size)); },
        arg("values"), arg("tile_size"), "Bytes that encode_into needs as out.");
    m.def("encode_into", &encode_into, arg("values"), arg("out"), arg("tile_size"), arg("threads"),
          "Writes a container to the front of out; returns its size.");
    m.def("section_sizes", &section_sizes, arg("container"), "Bytes of info, index and payload.");
    m.def("simd", [] { return kernels().name; }, "The vector extension in use: see kernels.hpp.");
    py::class_<OpenContainer>(
        m, "Container", "A container of which all but the tiles' bytes is validated; keeps its sections.")
        .def(py::init<py::array, py::array, py::array>(), arg("info"), arg("index"), arg("payload"))
        .def_property_readonly("shape", &OpenContainer::shape)
        .def_property_readonly("tile_size", [](const OpenContainer& c) { return c.header().tile_size; })
        .def_property_readonly("n_tiles", [](const OpenContainer& c) { return c.header().tiles(); })
        .def_property_readonly("low_bits", [](const OpenContainer& c) { return c.header().low_bits; })
        .def_property_readonly("row_classes",
                               [](const OpenContainer& c) { return c.header().model.row_classes; })
        .def_property_readonly("column_classes",
                               [](const OpenContainer& c) { return c.header().model.column_classes; })
        .def_property_readonly("levels", [](const OpenContainer& c) { return c.header().model.levels; })
        .def("tiles", &OpenContainer::tiles,
             "Packed bytes (uint32) and kind (uint8: 0 rans, 1 raw, 2 constant) of each tile.")
        .def("decode_into", &OpenContainer::decode_into, arg("out"), arg("threads"),
             "Verifies and decodes all elements into out.")
        .def("decode_tile", &OpenContainer::unpack_one, arg("tile"),
             "Verifies and decodes the elements of one tile.");
    m.def("split_into", &split_into, arg("values"), arg("planes"),
          "Numbers as planes of bytes; see planes.hpp.");
    m.def("decode_numbers_into", &decode_numbers_into, arg("planes"), arg("values").noconvert(),
          arg("threads"), "Verifies and decodes the containers of all planes into the numbers they make up.");
    m.def("merge_into", &merge_into, arg("planes"), arg("values"), "The way back.");
    m.attr("NZ_VERSION") = static_cast<int>(kNzVersion);
    m.def("nz_sizes", &nz_sizes, arg("fractals"), "Bytes that nz_encode_into needs as payload and as index.");
    m.def("nz_encode_into", &nz_encode_into, arg("fractals"), arg("payload"), arg("index"), arg("threads"),
          "Codes fractals (k1, n1, 16, 32); returns how many bytes of payload count.");
    m.def("nz_inspect", &nz_inspect, arg("payload"), arg("index"),
          "Validates all but the tiles' bytes; returns k1, n1.");
    m.def("nz_decode_into", &nz_decode_into, arg("payload"), arg("index"), arg("out"), arg("threads"),
          "Verifies and decodes all fractals into out.");
    m.def("entropy_bits", &entropy, arg("values"), "Order-0 entropy of the bytes in bits per element.");
    m.def("crc32c", &checksum, arg("data"), arg("portable") = false,
          "CRC-32C of the bytes, by the CPU's own instruction unless portable.");
    bind_feedback(m);
    bind_int8(m);
    bind_weights(m);
}
