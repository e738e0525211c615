#include "backends/onnxruntime/options.h"

#include "backends/onnxruntime/graph_message.h"
#include "base/files.h"
#include "bundle/contract.h"

namespace r1v::ort {
namespace {

namespace fs = std::filesystem;

constexpr char kAvailableCores[] = "available_cores";
constexpr char kStopsAtLength[] = "attention_stops_at_length";
constexpr const char* kKnown[] = {"weights_root",         "weights_root_entry",  "session_entries", "threads",
                                  "image_tokens_per_run", "rows_per_prompt_run", "cache_in_place",
                                  kStopsAtLength};

// What the build writes into an engine's options, for graphs that are opened without any.
constexpr char kGraphs[] = "graphs", kWeightsFolder[] = "session.model_external_initializers_file_folder_path",
               kInt4Arithmetic[] = "session.qdq_matmulnbits_accuracy_level", kFloat32Inputs[] = "1",
               kDequantizeAtLoad[] = "session.disable_quant_qdq";
constexpr int64_t kTokensAtOnce = 256;
constexpr const char* kImageGraphs[] = {contract::kVision, contract::kProjector};
// TensorProto.DataType of onnx.proto.
constexpr uint64_t kOnnxInt8 = 3, kOnnxFloat16 = 10, kOnnxFloat8 = 17, kOnnxUint4 = 21, kOnnxInt4 = 22;

// 4-bit weights stay packed, with float32 inputs. FP8 weights are dequantized once, at load, where there are none of 4
// bits; so is INT8 in float16, which ONNX Runtime fuses into a graph that it refuses itself. What it widens to float32
// is brought into kernels' layouts one after the other: all threads would give up none before all are done.
Entries quantization_entries(const std::string& model, const std::string& where) {
  const std::set<uint64_t> types = initializer_types(model, where);
  const auto has = [&](uint64_t type) { return types.count(type) > 0; };
  Entries entries = {{kInt4Arithmetic, kFloat32Inputs}};
  const bool dequantized = has(kOnnxFloat8) && !has(kOnnxInt4) && !has(kOnnxUint4);
  if (dequantized || (has(kOnnxInt8) && has(kOnnxFloat16))) entries[kDequantizeAtLoad] = "1";
  if (dequantized || has(kOnnxFloat16)) entries[kParallelPrepack] = "0";
  return entries;
}

void require_known(const Fields& options) {
  for (const auto& [name, value] : options.all().items()) {
    bool known = false;
    for (const char* each : kKnown) known = known || name == each;
    if (!known) throw_field(options.where() + "." + name, "an option that this version knows", value);
  }
}

// The folder that the graphs' weights are relative to. Its name stays inside the bundle; folders on the way may be
// links.
fs::path weights_root(const Bundle& bundle, const fs::path& folder, const Fields& options) {
  const fs::path root = (folder / options.text("weights_root")).lexically_normal();
  if (root.is_absolute() || *root.begin() == "..") {
    throw_field(options.where() + ".weights_root", "a folder of the bundle", options.at("weights_root"));
  }
  return (bundle.folder / root).lexically_normal();
}

std::string image_graph(const std::string& folder, const char* graph) { return folder + "/" + graph + ".onnx"; }

std::string folder_in(const std::string& target, const std::string& folder) {
  return "engines/" + target + "/" + folder;
}

int64_t threads_of(const Fields& threads, const std::string& graph) {
  const Json& value = threads.at(graph);
  return value == kAvailableCores ? 0 : threads.integer(graph, 1, 4096);
}

}  // namespace

Options parse_options(const Bundle& bundle, const std::string& target) {
  const EngineDocument& engine = bundle.pipeline.engines.at(target);
  const Fields options(engine.options, "pipeline.json: engines." + target + ".options");
  require_known(options);
  if (!options.flag("cache_in_place")) throw_field(options.where() + ".cache_in_place", "true", false);
  options.integer("rows_per_prompt_run", 1, INT64_MAX);  // Prompts run row by row, which any value allows.
  const fs::path folder = fs::path("engines") / target;
  const fs::path root = weights_root(bundle, folder, options);
  const std::string root_entry = options.text("weights_root_entry");
  const Fields entries = options.object("session_entries"), threads = options.object("threads");
  Options parsed{{}, options.integer("image_tokens_per_run", 1, INT32_MAX)};
  // Bundles of earlier versions do not say.
  parsed.attention_stops_at_length = options.has(kStopsAtLength) && options.flag(kStopsAtLength);
  for (const char* graph : {contract::kVision, contract::kProjector, contract::kEmbed, contract::kDecoder}) {
    const auto file = engine.files.find(graph);
    if (file == engine.files.end()) throw_field("pipeline.json: engines." + target + ".files", graph, "nothing");
    GraphOptions of_graph{(folder / file->second).generic_string(), root, root_entry, {}, threads_of(threads, graph)};
    const Fields of_session = entries.object(graph);
    for (const auto& [name, value] : of_session.all().items()) of_graph.entries[name] = of_session.text(name);
    parsed.graphs[graph] = std::move(of_graph);
  }
  return parsed;
}

bool has_image_graphs(const Bundle& bundle, const std::string& target, const std::string& folder) {
  return bundle.manifest.files.count(image_graph(folder_in(target, folder), contract::kVision)) > 0;
}

Options image_options(const Bundle& bundle, const std::string& target, const std::string& folder, const Options& own) {
  Options options{{}, own.image_tokens_per_run};
  for (const char* graph : kImageGraphs) {
    GraphOptions of_graph = own.graphs.at(graph);
    of_graph.file = image_graph(folder_in(target, folder), graph);
    of_graph.entries = quantization_entries(bundle.read(of_graph.file, kGraphLimitBytes), of_graph.file);
    options.graphs[graph] = std::move(of_graph);
  }
  return options;
}

Options standard_vision_options(const Bundle& bundle) {
  Options options{{}, kTokensAtOnce};
  for (const char* graph : kImageGraphs) {
    const std::string file = image_graph(kGraphs, graph);
    if (bundle.manifest.files.count(file) == 0) {
      throw Error(
          Code::kBundle, "The bundle has nothing that encodes images.",
          {(bundle.folder / file).string(), "the graph", "no such file", "build it with --target onnxruntime too"});
    }
    const Entries entries = quantization_entries(bundle.read(file, kGraphLimitBytes), file);
    options.graphs[graph] = {file, bundle.folder / kGraphs, kWeightsFolder, entries, 0};
  }
  return options;
}

}  // namespace r1v::ort
