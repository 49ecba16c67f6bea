// The coder of compress_executor on an Ascend card: the operator CompressFcOp, run as a graph of its own by
// CANN's graph engine. What its stream means is known to the hardware alone.
//
// Only calls without std::string are used: CANN's libraries may have been built with the older string ABI.
// The operators are made by name, since not every version of CANN ships their headers.
#include <array>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "executor.hpp"
#include "ge/ge_api.h"
#include "graph/graph.h"
#include "graph/operator_factory.h"
#include "graph/tensor.h"

namespace slimrun {
namespace {

constexpr uint32_t kGraph = 1;
constexpr uint32_t kTiling = 8;           // fractals a side of a tile
constexpr size_t kIndexBytesPerTile = 8;  // with isTight
constexpr int64_t kFractalRows = 16;
constexpr int64_t kFractalColumns = 32;
constexpr size_t kOutputs = 3;  // coded weights, index, info

using Options = std::map<ge::AscendString, ge::AscendString>;

/// The first card of this process; ASCEND_RT_VISIBLE_DEVICES chooses which one that is.
Options engine_options() { return {{"ge.exec.deviceId", "0"}, {"ge.graphRunMode", "0"}}; }

void check(uint32_t status, const char* call) {
    if (status != 0)
        throw std::runtime_error(std::string("CANN: ") + call + " failed with status " +
                                 std::to_string(status) + "; its log has the reason");
}

/// The graph engine, for as long as this lives.
class Engine {
  public:
    Engine() { check(ge::GEInitialize(engine_options()), "GEInitialize"); }
    Engine(const Engine&) = delete;
    Engine& operator=(const Engine&) = delete;
    ~Engine() {
        if (!finalized_) ge::GEFinalize();
    }
    void finalize() {
        finalized_ = true;
        check(ge::GEFinalize(), "GEFinalize");
    }

  private:
    bool finalized_ = false;
};

ge::Operator make_operator(const char* name, const char* type) {
    if (!ge::OperatorFactory::IsExistOp(type))
        throw std::runtime_error(std::string("CANN: this version has no operator ") + type);
    return ge::OperatorFactory::CreateOperator(name, type);
}

std::vector<int64_t> compress_parameters(const Request& request, size_t raw_bytes, size_t index_bytes) {
    constexpr int64_t kEngines = 4, kChannels = 2, kRatio = 64, kBlockDim = 1;
    return {static_cast<int64_t>(raw_bytes),
            static_cast<int64_t>(index_bytes),
            request.is_tight,
            kEngines,
            kChannels,
            kRatio,
            request.k_value,
            request.n_value,
            kBlockDim,
            request.compress_type,
            request.is_tiling};
}

ge::Graph make_graph(const ge::TensorDesc& description, const std::vector<int64_t>& parameters) {
    ge::Operator data = make_operator("weight", "Data");
    data.SetAttr("index", int64_t{0});
    check(data.UpdateInputDesc("x", description), "UpdateInputDesc");
    check(data.UpdateOutputDesc("y", description), "UpdateOutputDesc");
    ge::Operator coder = make_operator("compress", "CompressFcOp");
    if (coder.GetOutputsSize() < kOutputs)
        throw std::runtime_error("CANN: this version's CompressFcOp has no output compress_info");
    coder.SetInput("weight", data);
    check(coder.UpdateInputDesc("weight", description), "UpdateInputDesc");
    coder.SetAttr("compress_parameters", parameters);
    ge::Graph graph("compress");
    graph.SetInputs({data});
    graph.SetOutputs(std::vector<std::pair<ge::Operator, std::vector<size_t>>>{{coder, {0, 1, 2}}});
    if (!graph.IsValid()) throw std::runtime_error("CANN: the graph around CompressFcOp is not valid");
    return graph;
}

/// The first `size` bytes of a tensor.
std::vector<uint8_t> first_bytes(const ge::Tensor& tensor, size_t size, const char* name) {
    const uint8_t* const data = tensor.GetData();
    if (data == nullptr || tensor.GetSize() < size)
        throw std::runtime_error(std::string("CANN: CompressFcOp gave ") + std::to_string(tensor.GetSize()) +
                                 " bytes of " + name + ", expected " + std::to_string(size));
    return {data, data + size};
}

std::vector<ge::Tensor> run(const ge::Graph& graph, const ge::Tensor& input) {
    std::vector<ge::Tensor> outputs;
    ge::Session session(engine_options());
    check(session.AddGraph(kGraph, graph), "AddGraph");
    check(session.RunGraph(kGraph, {input}, outputs), "RunGraph");
    check(session.RemoveGraph(kGraph), "RemoveGraph");
    if (outputs.size() != kOutputs)
        throw std::runtime_error("CANN: CompressFcOp gave " + std::to_string(outputs.size()) +
                                 " outputs, expected 3");
    return outputs;
}

/// The coder's outputs as the files' content. `outputs` must be gone before the engine is.
Compressed take(const std::vector<ge::Tensor>& outputs, size_t index_bytes) {
    const std::vector<uint8_t> info = first_bytes(outputs[2], 3 * sizeof(uint32_t), "info");
    std::array<uint32_t, 3> numbers;
    std::memcpy(numbers.data(), info.data(), info.size());
    Compressed coded;
    coded.tiling_n = numbers[0];
    coded.tiling_k = numbers[1];
    coded.out = first_bytes(outputs[0], numbers[2], "coded weights");
    coded.index = first_bytes(outputs[1], index_bytes, "index");
    return coded;
}

}  // namespace

const char* const kContainer = "ascend 1";

Compressed compress(const Request& request, const std::vector<uint8_t>& fractals) {
    const auto tiles = [](uint32_t side) { return size_t{(side + kTiling - 1) / kTiling}; };
    const size_t index_bytes = kIndexBytesPerTile * tiles(request.dim_k) * tiles(request.dim_n);
    const ge::Shape shape(std::vector<int64_t>{request.dim_k, request.dim_n, kFractalRows, kFractalColumns});
    const ge::TensorDesc description(shape, ge::FORMAT_ND, ge::DT_INT8);
    Engine engine;
    Compressed coded;
    {
        const ge::Tensor input(description, fractals.data(), fractals.size());
        const ge::Graph graph =
            make_graph(description, compress_parameters(request, fractals.size(), index_bytes));
        coded = take(run(graph, input), index_bytes);
    }
    engine.finalize();
    return coded;
}

}  // namespace slimrun
