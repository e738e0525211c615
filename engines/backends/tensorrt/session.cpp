#include "backends/tensorrt/session.h"

#include <algorithm>
#include <cstring>

#include "base/checked.h"
#include "base/files.h"
#include "bundle/numbers.h"

namespace r1v::trt {
namespace {

using nvinfer1::OptProfileSelector;

constexpr char kVerify[] = "run `r1v-export verify`; if the bundle is sound, build it again on this machine";

std::string shown(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (int64_t size : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + "]";
}

std::vector<int64_t> vector_of(const nvinfer1::Dims& dims) {
  return dims.nbDims < 0 ? std::vector<int64_t>{} : std::vector<int64_t>(dims.d, dims.d + dims.nbDims);
}

nvinfer1::Dims dims_of(const std::vector<int64_t>& shape, const std::string& where) {
  nvinfer1::Dims dims{};
  if (shape.size() > nvinfer1::Dims::MAX_DIMS) {
    throw Error(Code::kBundle, "A plan's tensor has too many dimensions.", {where, "", shown(shape), kVerify});
  }
  dims.nbDims = static_cast<int32_t>(shape.size());
  std::copy(shape.begin(), shape.end(), dims.d);
  return dims;
}

nvinfer1::DataType data_type(ElementType type) {
  switch (type) {
    case ElementType::kFloat32: return nvinfer1::DataType::kFLOAT;
    case ElementType::kFloat16: return nvinfer1::DataType::kHALF;
    case ElementType::kBFloat16: return nvinfer1::DataType::kBF16;
    case ElementType::kInt8:  // of caches of the target onnxruntime only
    case ElementType::kInt64: break;
  }
  return nvinfer1::DataType::kINT64;
}

size_t count_of(const std::vector<int64_t>& shape, const std::string& where) {
  size_t count = 1;
  for (int64_t size : shape) count = checked_product({count, checked_cast<size_t>(size, where)}, where);
  return count;
}

// -1 for every symbol of a plan: as an engine gives its shapes.
SymbolSizes open_sizes(const Plan& plan) {
  SymbolSizes sizes;
  for (const Profile& profile : plan.profiles) {
    for (const auto& [symbol, range] : profile) sizes[symbol] = -1;
  }
  return sizes;
}

SymbolSizes ends_of(const Profile& profile, bool max) {
  SymbolSizes sizes;
  for (const auto& [symbol, range] : profile) sizes[symbol] = max ? range.max : range.min;
  return sizes;
}

void require_same(bool same, const std::string& where, const std::string& expected, const std::string& found) {
  if (same) return;
  throw Error(Code::kBundle, "A plan is not the one of its description.", {where, expected, found, kVerify});
}

}  // namespace

Session::Session(const Bundle& bundle, const Library& library, const Cuda& cuda, Plan plan)
    : library_(library), plan_(std::move(plan)), stream_(cuda) {
  const MappedFile content(bundle.folder / plan_.file);
  engine_ = library.deserialize(content.data(), content.size());
  if (engine_ == nullptr) {
    throw Error(Code::kBundle, "TensorRT refuses a plan.", {plan_.file, "", library.errors(), kVerify});
  }
  require_described();
}

void Session::require_described() const {
  const auto count = static_cast<size_t>(engine_->getNbIOTensors());
  require_same(count == plan_.bindings.size(), plan_.file, std::to_string(plan_.bindings.size()) + " tensors",
               std::to_string(count));
  const auto profiles = static_cast<size_t>(engine_->getNbOptimizationProfiles());
  require_same(profiles == plan_.profiles.size(), plan_.file, std::to_string(plan_.profiles.size()) + " profiles",
               std::to_string(profiles));
  const SymbolSizes open = open_sizes(plan_);
  for (const Binding& binding : plan_.bindings) {
    const std::string where = plan_.file + ": " + binding.name;
    const char* name = binding.name.c_str();
    const auto mode = binding.is_input ? nvinfer1::TensorIOMode::kINPUT : nvinfer1::TensorIOMode::kOUTPUT;
    require_same(engine_->getTensorIOMode(name) == mode, where, binding.is_input ? "an input" : "an output", "");
    require_same(engine_->getTensorDataType(name) == data_type(binding.dtype), where, element_name(binding.dtype), "");
    const std::vector<int64_t> shape = vector_of(engine_->getTensorShape(name)), expected = binding.shape_of(open);
    require_same(shape == expected, where, shown(expected), shown(shape));
    if (!binding.is_input) continue;
    for (size_t profile = 0; profile < profiles; ++profile) {
      for (const bool max : {false, true}) {
        const auto end = max ? OptProfileSelector::kMAX : OptProfileSelector::kMIN;
        const auto found = vector_of(engine_->getProfileShape(name, static_cast<int32_t>(profile), end));
        const auto described = binding.shape_of(ends_of(plan_.profiles[profile], max));
        require_same(found == described, where + ", profile " + std::to_string(profile), shown(described),
                     shown(found));
      }
    }
  }
}

nvinfer1::IExecutionContext& Session::context(int profile) {
  std::unique_ptr<nvinfer1::IExecutionContext>& context = contexts_[profile];
  if (context == nullptr) {
    std::unique_ptr<nvinfer1::IExecutionContext> made(engine_->createExecutionContext());
    if (made == nullptr || !made->setOptimizationProfileAsync(profile, stream_.handle())) {
      throw Error(Code::kMemory, "TensorRT cannot create an execution context.",
                  {plan_.file, "memory of the GPU", library_.errors(), "use a GPU with more memory"});
    }
    stream_.synchronize();
    context = std::move(made);
  }
  return *context;
}

BoundRun::BoundRun(Session& session, SymbolSizes sizes, std::map<std::string, void*> given)
    : session_(session),
      sizes_(std::move(sizes)),
      profile_(session.plan().profile_for(sizes_)),
      given_(std::move(given)) {
  for (const Binding& binding : session.plan().bindings) {
    if (given_.count(binding.name) > 0) continue;
    std::vector<int64_t> shape = binding.shape_of(sizes_);
    const size_t bytes = checked_product({count_of(shape, binding.name), element_bytes(binding.dtype)}, binding.name);
    tensors_.emplace(binding.name, Tensor{&binding, std::move(shape), std::vector<char>(bytes),
                                          DeviceBuffer(session.stream(), bytes)});
  }
}

BoundRun::Tensor& BoundRun::tensor(const std::string& name, size_t count) {
  const auto found = tensors_.find(name);
  const std::string where = session_.plan().file + ": " + name;
  require_same(found != tensors_.end(), where, "a tensor", "none");
  const size_t of_plan = count_of(found->second.shape, name);
  require_same(of_plan == count, where, std::to_string(count) + " numbers", shown(found->second.shape));
  return found->second;
}

void BoundRun::write(const std::string& name, const float* numbers, size_t count) {
  Tensor& to = tensor(name, count);
  require_same(to.binding->dtype != ElementType::kInt64, name, "floating-point numbers", "int64");
  convert(numbers, count, to.binding->dtype, to.host.data(), session_.plan().graph, name);
  session_.stream().copy(to.memory.data(), to.host.data(), to.host.size(), cudaMemcpyHostToDevice);
}

void BoundRun::write(const std::string& name, const int64_t* numbers, size_t count) {
  Tensor& to = tensor(name, count);
  require_same(to.binding->dtype == ElementType::kInt64, name, "int64", element_name(to.binding->dtype));
  std::memcpy(to.host.data(), numbers, to.host.size());
  session_.stream().copy(to.memory.data(), to.host.data(), to.host.size(), cudaMemcpyHostToDevice);
}

nvinfer1::IExecutionContext& BoundRun::context() { return session_.context(profile_); }

// The context may have been bound for other runs since.
void BoundRun::bind() {
  nvinfer1::IExecutionContext& context = this->context();
  for (const Binding& binding : session_.plan().bindings) {
    const char* name = binding.name.c_str();
    const auto given = given_.find(binding.name);
    void* address = given != given_.end() ? given->second : tensors_.at(binding.name).memory.data();
    const std::vector<int64_t> shape = binding.shape_of(sizes_);
    const bool fits = !binding.is_input || context.setInputShape(name, dims_of(shape, binding.name));
    if (fits && context.setTensorAddress(name, address)) continue;
    throw Error(Code::kBundle, "TensorRT refuses a tensor.",
                {session_.plan().file + ": " + binding.name, shown(shape), session_.library().errors(), kVerify});
  }
}

void BoundRun::run() {
  if (captured_ != nullptr) {
    captured_->launch(session_.stream());
    return;
  }
  bind();
  if (context().enqueueV3(session_.stream().handle())) return;
  throw Error(Code::kGraph, "TensorRT cannot run an engine.",
              {session_.plan().file, "", session_.library().errors(), ""});
}

void BoundRun::read(const std::string& name, float* numbers, size_t count) {
  Tensor& from = tensor(name, count);
  require_same(from.binding->dtype != ElementType::kInt64, name, "floating-point numbers", "int64");
  session_.stream().copy(from.host.data(), from.memory.data(), from.host.size(), cudaMemcpyDeviceToHost);
  session_.stream().synchronize();
  to_float(from.host.data(), count, from.binding->dtype, numbers);
}

void BoundRun::capture() {
  bind();
  captured_ =
      CapturedGraph::capture(session_.stream(), [this] { return context().enqueueV3(session_.stream().handle()); });
}

}  // namespace r1v::trt
