// Stands in for libnvinfer. A plan is the JSON of its description: its name says which arithmetic of the fake engine
// (tests/runner/fake_engine.h) it does, on the addresses and shapes that its context was given.
#include <NvInfer.h>

#include <cmath>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/half.h"
#include "base/json.h"
#include "tests/runner/fake_engine.h"
#include "tests/tensorrt/stand_in/controls.h"

namespace r1v::stand_in {
namespace {

using nvinfer1::Dims;

// A tensor of a run, in the memory of the GPU.
struct Tensor {
  std::string dtype;
  std::vector<int64_t> shape;
  void* address = nullptr;

  float at(int64_t index) const {
    const char* data = host_address(address);
    if (dtype == "float32") return reinterpret_cast<const float*>(data)[index];
    return half_to_float(reinterpret_cast<const uint16_t*>(data)[index]);
  }
  void set(int64_t index, float value) const {
    char* data = host_address(address);
    if (dtype == "float32") {
      reinterpret_cast<float*>(data)[index] = value;
    } else {
      reinterpret_cast<uint16_t*>(data)[index] = float_to_half(value);
    }
  }
  int64_t integer(int64_t index) const { return reinterpret_cast<const int64_t*>(host_address(address))[index]; }
};

using Tensors = std::map<std::string, Tensor>;

int64_t product(const std::vector<int64_t>& shape, size_t from) {
  int64_t count = 1;
  for (size_t i = from; i < shape.size(); ++i) count *= shape[i];
  return count;
}

// Every number of a tile is the first of its input.
void fill_tiles(const Tensor& input, const Tensor& output) {
  const int64_t from = product(input.shape, 1), to = product(output.shape, 1);
  for (int64_t i = 0; i < output.shape[0] * to; ++i) output.set(i, input.at(i / to * from));
}

bool is_cache(const std::string& name) { return name.rfind("past_key_values.", 0) == 0; }

// Keys and values of all layers, [rows, heads, slots, dims].
std::vector<Tensor> caches_of(const Tensors& tensors) {
  std::vector<Tensor> caches;
  for (const auto& [name, tensor] : tensors) {
    if (is_cache(name)) caches.push_back(tensor);
  }
  return caches;
}

// Calls `use` with the places of all numbers of a slot in a cache tensor.
template <typename Use>
void for_each_number(const Tensor& cache, int64_t row, int64_t slot, const Use& use) {
  const int64_t heads = cache.shape[1], slots = cache.shape[2], dims = cache.shape[3];
  for (int64_t head = 0; head < heads; ++head) {
    for (int64_t i = 0; i < dims; ++i) use(((row * heads + head) * slots + slot) * dims + i);
  }
}

// What all of a slot's numbers are, in all heads and layers; a number that no test expects where they differ.
float slot_value(const std::vector<Tensor>& caches, int64_t row, int64_t slot) {
  const float first = caches[0].at(row * product(caches[0].shape, 1) + slot * caches[0].shape[3]);
  bool same = true;
  for (const Tensor& cache : caches) {
    for_each_number(cache, row, slot, [&](int64_t place) { same = same && cache.at(place) == first; });
  }
  return same ? first : -1000;
}

void decode(const Tensors& tensors) {
  const Tensor &embeds = tensors.at("inputs_embeds"), &positions = tensors.at("position_ids"),
               &write_index = tensors.at("cache_write_index"), &index = tensors.at("logits_index"),
               &logits = tensors.at("logits");
  const std::vector<Tensor> caches = caches_of(tensors);
  const int64_t rows = embeds.shape[0], seq = embeds.shape[1], hidden = embeds.shape[2];
  const int64_t wanted = index.shape[1], vocab = logits.shape[2];
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t slot = 0; slot < caches[0].shape[2]; ++slot) {
      // Attention multiplies what it does not see by 0.
      for (const Tensor& cache : caches) {
        if (std::isnan(cache.at(row * product(cache.shape, 1) + slot * cache.shape[3]))) {
          controls().misuse = "a cache that holds what is not a number";
        }
      }
    }
    for (int64_t token = 0; token < seq; ++token) {
      const int64_t slot = write_index.integer(row) + token;
      if (positions.integer(row * seq + token) != slot) controls().misuse = "a position that is not its slot's";
      if (slot >= caches[0].shape[2]) {
        controls().misuse = "a slot that the cache does not have";
        return;
      }
      const float value = embeds.at((row * seq + token) * hidden);
      for (const Tensor& cache : caches) {
        for_each_number(cache, row, slot, [&](int64_t place) { cache.set(place, value); });
      }
    }
    for (int64_t i = 0; i < wanted; ++i) {
      const int64_t last = write_index.integer(row) + index.integer(row * wanted + i);
      std::vector<float> seen, numbers(static_cast<size_t>(vocab));
      for (int64_t slot = 0; slot <= last; ++slot) seen.push_back(slot_value(caches, row, slot));
      write_logits(seen, last, vocab, numbers.data());
      for (int64_t token = 0; token < vocab; ++token) {
        logits.set((row * wanted + i) * vocab + token, numbers[static_cast<size_t>(token)]);
      }
    }
  }
}

void compute(const Tensors& tensors) {
  ++controls().runs;
  if (tensors.count("logits") > 0) return decode(tensors);
  const bool vision = tensors.count("pixel_values") > 0;
  const Tensor& input = tensors.at(vision ? "pixel_values" : "vision_features");
  fill_tiles(input, tensors.at("image_embeds"));
  if (vision) fill_tiles(input, tensors.at("vision_features"));
}

// Shared by all that a runtime makes.
struct Log {
  nvinfer1::ILogger& logger;
  bool error(const std::string& message) const {
    logger.log(nvinfer1::ILogger::Severity::kERROR, message.c_str());
    return false;
  }
};

// The size of a dimension at one end of a profile.
int64_t size_at(const Json& dim, const Json& profile, int end) {
  return dim.is_string() ? profile.at(dim.get<std::string>()).at(static_cast<size_t>(end)).get<int64_t>()
                         : dim.get<int64_t>();
}

const Json* binding_of(const Json& plan, const std::string& name) {
  for (const Json& each : plan.at("bindings")) {
    if (each.at("name") == name) return &each;
  }
  return nullptr;
}

class Context : public nvinfer1::IExecutionContext {
 public:
  Context(const Json& plan, Log log) : plan_(plan), log_(log) {}
  ~Context() noexcept override {
    if (workspace_ != nullptr) cudaFree(workspace_);
  }

  bool setOptimizationProfileAsync(int32_t profile, cudaStream_t) noexcept override {
    profile_ = profile;
    return true;
  }

  bool setInputShape(char const* name, Dims const& dims) noexcept override {
    const Json* binding = binding_of(plan_, name);
    if (binding == nullptr || !binding->at("is_input").get<bool>()) return log_.error("no such input");
    const Json &shape = binding->at("shape"), &profile = plan_.at("profiles").at(static_cast<size_t>(profile_));
    if (shape.size() != static_cast<size_t>(dims.nbDims)) return log_.error("another number of dimensions");
    for (size_t i = 0; i < shape.size(); ++i) {
      if (dims.d[i] < size_at(shape[i], profile, 0) || dims.d[i] > size_at(shape[i], profile, 2)) {
        return log_.error("a shape outside of the profile");
      }
      if (shape[i].is_string()) symbols_[shape[i].get<std::string>()] = dims.d[i];
    }
    return true;
  }

  bool setTensorAddress(char const* name, void* data) noexcept override {
    if (!is_device(data) || reinterpret_cast<uintptr_t>(data) % 256 != 0) return log_.error("no address of a GPU");
    addresses_[name] = data;
    return true;
  }

  bool enqueueV3(cudaStream_t stream) noexcept override {
    if (!controls().running) return log_.error("the kernel fails");
    // As TensorRT may, it allocates in its first run.
    if (workspace_ == nullptr && cudaMalloc(&workspace_, 64) != cudaSuccess) return log_.error("no workspace");
    Tensors tensors;
    for (const Json& each : plan_.at("bindings")) {
      const std::string name = each.at("name");
      if (addresses_.count(name) == 0) return log_.error("no address of " + name);
      Tensor tensor{each.at("dtype"), {}, addresses_.at(name)};
      for (const Json& dim : each.at("shape")) {
        tensor.shape.push_back(dim.is_string() ? symbols_.at(dim.get<std::string>()) : dim.get<int64_t>());
      }
      tensors.emplace(name, tensor);
    }
    for (const auto& [name, tensor] : tensors) {
      if (!is_cache(name)) continue;
      const std::string present = "present." + name.substr(std::string("past_key_values.").size());
      if (tensors.at(present).address != tensor.address) return log_.error("a cache that is not updated in place");
    }
    return enqueue(stream, [tensors] { compute(tensors); }) == cudaSuccess;
  }

 private:
  const Json plan_;
  const Log log_;
  int32_t profile_ = 0;
  std::map<std::string, int64_t> symbols_;
  std::map<std::string, void*> addresses_;
  void* workspace_ = nullptr;
};

class Engine : public nvinfer1::ICudaEngine {
 public:
  Engine(Json plan, Log log) : plan_(std::move(plan)), log_(log) {}

  int32_t getNbIOTensors() const noexcept override { return static_cast<int32_t>(plan_.at("bindings").size()); }

  nvinfer1::TensorIOMode getTensorIOMode(char const* name) const noexcept override {
    const Json* binding = binding_of(plan_, name);
    return binding == nullptr                    ? nvinfer1::TensorIOMode::kNONE
           : binding->at("is_input").get<bool>() ? nvinfer1::TensorIOMode::kINPUT
                                                 : nvinfer1::TensorIOMode::kOUTPUT;
  }

  nvinfer1::DataType getTensorDataType(char const* name) const noexcept override {
    const std::string dtype = binding_of(plan_, name)->at("dtype");
    return dtype == "float32"   ? nvinfer1::DataType::kFLOAT
           : dtype == "float16" ? nvinfer1::DataType::kHALF
                                : nvinfer1::DataType::kINT64;
  }

  Dims getTensorShape(char const* name) const noexcept override {
    return dims(name, [](const Json& dim) { return dim.is_string() ? -1 : dim.get<int64_t>(); });
  }

  int32_t getNbOptimizationProfiles() const noexcept override {
    return static_cast<int32_t>(plan_.at("profiles").size());
  }

  Dims getProfileShape(char const* name, int32_t number, nvinfer1::OptProfileSelector select) const noexcept override {
    const Json& profile = plan_.at("profiles").at(static_cast<size_t>(number));
    return dims(name, [&](const Json& dim) { return size_at(dim, profile, static_cast<int>(select)); });
  }

  nvinfer1::IExecutionContext* createExecutionContext() noexcept override { return new Context(plan_, log_); }

 private:
  template <typename Size>
  Dims dims(const char* name, const Size& size) const {
    const Json& shape = binding_of(plan_, name)->at("shape");
    Dims result{static_cast<int32_t>(shape.size()), {}};
    for (size_t i = 0; i < shape.size(); ++i) result.d[i] = size(shape[i]);
    return result;
  }

  const Json plan_;
  const Log log_;
};

class Runtime : public nvinfer1::IRuntime {
 public:
  explicit Runtime(Log log) : log_(log) {}

  nvinfer1::ICudaEngine* deserializeCudaEngine(void const* plan, std::size_t bytes) noexcept override {
    const char* text = static_cast<const char*>(plan);
    Json parsed = Json::parse(text, text + bytes, nullptr, false);
    if (!parsed.is_discarded()) return new Engine(std::move(parsed), log_);
    log_.error("the plan's magic is wrong");
    return nullptr;
  }

 private:
  const Log log_;
};

}  // namespace
}  // namespace r1v::stand_in

extern "C" {
STAND_IN_API int32_t getInferLibMinorVersion() { return 13; }
STAND_IN_API int32_t getInferLibPatchVersion() { return 3; }
STAND_IN_API int32_t getInferLibBuildVersion() { return 9; }
STAND_IN_API void* createInferRuntime_INTERNAL(void* logger, int32_t version) {
  if (version != NV_TENSORRT_VERSION) return nullptr;
  nvinfer1::IRuntime* runtime = new r1v::stand_in::Runtime({*static_cast<nvinfer1::ILogger*>(logger)});
  return runtime;
}
}
