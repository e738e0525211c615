#include "backends/onnxruntime/session.h"

#include <algorithm>
#include <optional>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include "backends/onnxruntime/linked_weights.h"
#include "base/checked.h"
#include "base/cpus.h"
#include "base/files.h"
#include "bundle/contract.h"
#include "bundle/numbers.h"

namespace r1v::ort {
namespace {

constexpr char kSpinning[] = "session.intra_op.allow_spinning";
// Else threads that wait for the next step take the cores that sampling, delivering and other graphs need.
constexpr char kNoSpinningBetweenRuns[] = "session.force_spinning_stop";
constexpr char kShrinkAfterRun[] = "memory.enable_memory_arena_shrinkage";
constexpr char kRefused[] = "ONNX Runtime refuses an engine.";
constexpr char kRebuild[] =
    "run `r1v-export verify`; if the bundle is sound, build it again with this version of onnxruntime";

void require_provider(const Library& library, const std::string& provider) {
  const std::vector<std::string> available = library.providers();
  if (std::find(available.begin(), available.end(), provider) != available.end()) return;
  std::string found;
  for (const std::string& each : available) found += (found.empty() ? "" : ", ") + each;
  throw Error(Code::kCapability, "This ONNX Runtime cannot use the device.",
              {library.path() + ", onnxruntime " + library.version(), provider, found,
               "use an ONNX Runtime with it on a machine with a CUDA GPU, or the device cpu"});
}

void append_cuda(const Library& library, SessionOptions* options, const std::string& gpu) {
  const Api& api = library.api();
  CudaOptions* cuda = nullptr;
  const auto check = [&](Status* status) {
    library.check(status, Code::kCapability, "ONNX Runtime cannot use the CUDA GPU.", library.path());
  };
  check(api.CreateCUDAProviderOptions(&cuda));
  const Owned<CudaOptions> owner(cuda, api.ReleaseCUDAProviderOptions);
  const char *key = "device_id", *value = gpu.c_str();
  check(api.UpdateCUDAProviderOptions(cuda, &key, &value, 1));
  check(api.SessionOptionsAppendExecutionProvider_CUDA_V2(options, cuda));
}

void append_tensorrt(const Library& library, SessionOptions* options, const std::string& gpu) {
  const Api& api = library.api();
  TensorRtOptions* tensorrt = nullptr;
  const auto check = [&](Status* status) {
    library.check(status, Code::kCapability, "ONNX Runtime cannot use TensorRT.", library.path());
  };
  check(api.CreateTensorRTProviderOptions(&tensorrt));
  const Owned<TensorRtOptions> owner(tensorrt, api.ReleaseTensorRTProviderOptions);
  const char *key = "device_id", *value = gpu.c_str();
  check(api.UpdateTensorRTProviderOptions(tensorrt, &key, &value, 1));
  check(api.SessionOptionsAppendExecutionProvider_TensorRT_V2(options, tensorrt));
}

// `spinning`: threads wait for the next operator of a run by spinning, which small operators gain from.
Owned<SessionOptions> session_options(const Library& library, const GraphOptions& graph,
                                      const std::filesystem::path& weights_folder, const DeviceOptions& device,
                                      bool spinning) {
  const Api& api = library.api();
  const auto check = [&](Status* status) { library.check(status, Code::kBundle, kRefused, graph.file, kRebuild); };
  SessionOptions* options = nullptr;
  check(api.CreateSessionOptions(&options));
  Owned<SessionOptions> owner(options, api.ReleaseSessionOptions);
  const bool fixed = graph.threads > 0;  // A look-up gains nothing from more threads, whatever the caller says.
  const int available = device.threads > 0 ? device.threads : thread_count();
  check(api.SetIntraOpNumThreads(options, fixed ? static_cast<int>(graph.threads) : available));
  check(api.SetSessionLogSeverityLevel(options, kFatal));
  Entries entries = {{graph.weights_root_entry, weights_folder.string()},
                     {kNoSpinningBetweenRuns, "1"},
                     {kParallelPrepack, "1"},
                     {kSpinning, spinning ? "1" : "0"}};
  for (const auto& [name, value] : graph.entries) entries[name] = value;
  for (const auto& [name, value] : entries) check(api.AddSessionConfigEntry(options, name.c_str(), value.c_str()));
  const std::string gpu = std::to_string(device.gpu);
  if (device.device == Device::kTensorRt) {
    require_provider(library, "TensorrtExecutionProvider");
    append_tensorrt(library, options, gpu);
  }
  if (device.device != Device::kCpu) {
    require_provider(library, "CUDAExecutionProvider");
    append_cuda(library, options, gpu);
  }
  return owner;
}

// Preparing the weights of a session frees copies of them, as much as a third of all for int4, which glibc would keep.
void return_freed_memory() {
#if defined(__GLIBC__)
  malloc_trim(0);
#endif
}

Owned<RunOptions> run_once(const Library& library, const std::string& where) {
  const Api& api = library.api();
  RunOptions* options = nullptr;
  library.check(api.CreateRunOptions(&options), Code::kBundle, kRefused, where, kRebuild);
  Owned<RunOptions> owner(options, api.ReleaseRunOptions);
  library.check(api.AddRunConfigEntry(options, kShrinkAfterRun, "cpu:0"), Code::kBundle, kRefused, where, kRebuild);
  return owner;
}

std::optional<ElementType> element_type(DataType type) {
  switch (type) {
    case kFloat: return ElementType::kFloat32;
    case kFloat16: return ElementType::kFloat16;
    case kBFloat16: return ElementType::kBFloat16;
    case kInt64: return ElementType::kInt64;
    case kInt8: return ElementType::kInt8;
  }
  return std::nullopt;
}

// Name and element type of the inputs or outputs that a session has.
std::vector<TensorContract> session_tensors(const Library& library, const Session* session, bool inputs,
                                            const std::string& where) {
  const Api& api = library.api();
  const auto check = [&](Status* status) { library.check(status, Code::kBundle, kRefused, where, kRebuild); };
  Allocator* allocator = nullptr;  // the default one, which nobody frees
  check(api.GetAllocatorWithDefaultOptions(&allocator));
  size_t count = 0;
  check((inputs ? api.SessionGetInputCount : api.SessionGetOutputCount)(session, &count));
  std::vector<TensorContract> tensors;
  for (size_t i = 0; i < count; ++i) {
    char* name = nullptr;
    check((inputs ? api.SessionGetInputName : api.SessionGetOutputName)(session, i, allocator, &name));
    const std::string text = name;
    check(api.AllocatorFree(allocator, name));
    TypeInfo* info = nullptr;
    check((inputs ? api.SessionGetInputTypeInfo : api.SessionGetOutputTypeInfo)(session, i, &info));
    const Owned<TypeInfo> owner(info, api.ReleaseTypeInfo);
    const TensorInfo* tensor = nullptr;
    check(api.CastTypeInfoToTensorInfo(info, &tensor));
    DataType type{};
    if (tensor != nullptr) check(api.GetTensorElementType(tensor, &type));
    const std::optional<ElementType> known = element_type(type);
    if (!known) {
      throw Error(
          Code::kBundle, "A graph's tensor has a type that libr1v does not know.",
          {where + ": " + text, "float32, float16, bfloat16, int8 or int64", "type " + std::to_string(type), kRebuild});
    }
    tensors.push_back({text, *known});
  }
  return tensors;
}

void require_names(const std::vector<TensorContract>& found, const std::vector<TensorContract>& expected,
                   const std::string& where) {
  for (size_t i = 0; i < std::max(found.size(), expected.size()); ++i) {
    const std::string name = i < found.size() ? found[i].name : "nothing";
    const std::string wanted = i < expected.size() ? expected[i].name : "nothing";
    if (name != wanted)
      throw Error(Code::kBundle, "A graph's tensors are not the contract's.", {where, wanted, name, kRebuild});
  }
}

// By the beginnings of kPastKey, kPastValue and their presents.
bool is_cache(const std::string& name) { return name.rfind("past_key_values.", 0) == 0 || name.rfind("present.", 0) == 0; }

size_t count_of(const std::vector<int64_t>& shape) {
  size_t count = 1;
  for (int64_t size : shape) count = checked_product({count, checked_cast<size_t>(size, "shape")}, "shape");
  return count;
}

std::string shown(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (int64_t size : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + "]";
}

}  // namespace

GraphSession::GraphSession(const Library& library, const Bundle& bundle, const GraphContract& graph,
                           const GraphOptions& options, const DeviceOptions& device)
    : library_(library), graph_(graph), memory_(cpu_memory(library)) {
  const PlacedModel model =
      follow_links(bundle.read(options.file, kGraphLimitBytes), options.weights_root, options.file);
  const Owned<SessionOptions> session_options_ =
      session_options(library, options, model.weights_folder, device, graph.name == contract::kDecoder);
  Session* session = nullptr;
  library.check(library.api().CreateSessionFromArray(library.env(), model.content.data(), model.content.size(),
                                                     session_options_.get(), &session),
                Code::kBundle, kRefused, (bundle.folder / options.file).string(), kRebuild);
  session_ = Owned<Session>(session, library.api().ReleaseSession);
  return_freed_memory();
  if (device.device == Device::kCpu) once_ = run_once(library, options.file);
  const std::vector<TensorContract> inputs = session_tensors(library, session, true, options.file);
  const std::vector<TensorContract> outputs = session_tensors(library, session, false, options.file);
  require_names(inputs, graph.inputs, options.file + ": inputs");
  require_names(outputs, graph.outputs, options.file + ": outputs");
  compute_ = outputs.front().dtype;
  cache_ = outputs.back().dtype == ElementType::kInt8 ? ElementType::kInt8 : compute_;
  for (const auto* side : {&inputs, &outputs}) {
    for (const TensorContract& each : *side) {
      const ElementType expected = is_cache(each.name) ? cache_ : compute_;
      if (each.dtype == ElementType::kInt64 || each.dtype == expected) continue;
      throw Error(Code::kBundle, "A graph computes in two types.",
                  {options.file + ": " + each.name, element_name(expected), element_name(each.dtype), kRebuild});
    }
  }
}

std::vector<float> GraphSession::run(const std::vector<Array>& inputs, const std::vector<int64_t>& shape) const {
  const Api& api = library_.api();
  std::vector<Owned<Value>> values;
  std::vector<std::vector<char>> converted;
  std::vector<const Value*> pointers;
  std::vector<const char*> names;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const Array& input = inputs[i];
    const size_t count = count_of(input.shape);
    const ElementType type = input.type == ElementType::kInt64 ? input.type : compute_;
    const void* data = input.data;
    if (type != input.type) {
      converted.emplace_back(checked_product({count, element_bytes(type)}, graph_.name));
      convert(static_cast<const float*>(input.data), count, type, converted.back().data(), graph_.name,
              graph_.inputs[i].name);
      data = converted.back().data();
    }
    // ONNX Runtime writes to no input.
    values.push_back(
        tensor_on(library_, memory_.get(), const_cast<void*>(data), count * element_bytes(type), input.shape, type));
    pointers.push_back(values.back().get());
    names.push_back(graph_.inputs[i].name.c_str());
  }
  const char* output_name = graph_.outputs.front().name.c_str();
  Value* output = nullptr;
  const bool every_step = graph_.name == contract::kEmbed;
  check_run(api.Run(session_.get(), every_step ? nullptr : once(), names.data(), pointers.data(), inputs.size(),
                    &output_name, 1, &output),
            inputs);
  const Owned<Value> owner(output, api.ReleaseValue);

  TensorInfo* info = nullptr;
  check_run(api.GetTensorTypeAndShape(output, &info), inputs);
  const Owned<TensorInfo> info_owner(info, api.ReleaseTensorTypeAndShapeInfo);
  size_t rank = 0;
  check_run(api.GetDimensionsCount(info, &rank), inputs);
  std::vector<int64_t> found(rank);
  check_run(api.GetDimensions(info, found.data(), rank), inputs);
  if (found != shape) {
    throw Error(Code::kGraph, "A graph gives a tensor of another shape.",
                {graph_.name + ": " + output_name, shown(shape), shown(found), kRebuild});
  }
  void* data = nullptr;
  check_run(api.GetTensorMutableData(output, &data), inputs);
  std::vector<float> result(count_of(shape));
  to_float(data, result.size(), compute_, result.data());
  return result;
}

void GraphSession::check_run(Status* status, const std::vector<Array>& inputs) const {
  if (status == nullptr) return;
  std::string where = graph_.name + ", with ";
  for (size_t i = 0; i < inputs.size(); ++i) {
    where += (i > 0 ? ", " : "") + graph_.inputs[i].name + " " + shown(inputs[i].shape);
  }
  library_.check(status, Code::kGraph, "ONNX Runtime fails in the " + graph_.name + " graph.", where,
                 "with less memory than it takes, ask for fewer tokens, tiles or answers at once; else run "
                 "`r1v-export verify`, and build again with this onnxruntime");
}

}  // namespace r1v::ort
