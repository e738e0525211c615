#include "backends/onnxruntime/library.h"

#include <cstdlib>
#include <map>
#include <mutex>

#include "base/shared_library.h"

namespace r1v::ort {
namespace {

constexpr char kVariable[] = "R1V_ONNXRUNTIME";
// Microsoft's builds report to Microsoft what is run, see docs/onnxruntime.md; read once, where the first `Env` is made.
constexpr char kNoTelemetry[] = "ORT_DISABLE_TELEMETRY";
constexpr char kFix[] =
    "install ONNX Runtime and name its libonnxruntime.so by the option onnxruntime_library or by R1V_ONNXRUNTIME; a "
    "Python environment has one in site-packages/onnxruntime/capi";

LibrarySearch search() {
  return {"ONNX Runtime", "libonnxruntime.so", kVariable, {"libonnxruntime.so.1", "libonnxruntime.so"}, kFix};
}

}  // namespace

const Library& Library::open(const std::string& path) {
  static std::mutex mutex;
  static auto* libraries = new std::map<std::string, std::unique_ptr<const Library>>;  // never unloaded
  const std::lock_guard<std::mutex> lock(mutex);
  const char* setting = std::getenv(kVariable);
  const std::string key = !path.empty() ? path : setting != nullptr ? setting : "";
  std::unique_ptr<const Library>& library = (*libraries)[key];
  if (!library) library.reset(new Library(path));
  return *library;
}

Library::Library(const std::string& path) {
  const SharedLibrary opened = open_library(search(), path);
  path_ = opened.path;
  const auto base_of = reinterpret_cast<const ApiBase* (*)()>(opened.function("OrtGetApiBase"));
  const ApiBase* base = base_of();
  version_ = base->GetVersionString();
  void* const* table = base->GetApi(kApiVersion);
  if (table == nullptr) {
    throw Error(Code::kCapability, "This ONNX Runtime is too old.",
                {path_, "API version " + std::to_string(kApiVersion), "onnxruntime " + version_, kFix});
  }
#define R1V_ORT_LOAD(position, name, result, parameters) \
  api_.name = reinterpret_cast<result(*) parameters>(table[position]);
  R1V_ORT_FUNCTIONS(R1V_ORT_LOAD)
#undef R1V_ORT_LOAD
  ::setenv(kNoTelemetry, "1", /*overwrite=*/0);
  // Its errors are raised too; its own lines on stderr would only repeat them.
  check(api_.CreateEnv(kFatal, "r1v", &env_), Code::kCapability, "ONNX Runtime cannot be set up.", path_);
}

std::vector<std::string> Library::providers() const {
  char** names = nullptr;
  int count = 0;
  check(api_.GetAvailableProviders(&names, &count), Code::kCapability, "ONNX Runtime names no providers.", path_);
  std::vector<std::string> providers(names, names + count);
  api_.ReleaseAvailableProviders(names, count);
  return providers;
}

void Library::check(Status* status, Code code, const std::string& what, const std::string& where,
                    const std::string& fix) const {
  if (status == nullptr) return;
  const std::string message = api_.GetErrorMessage(status);
  api_.ReleaseStatus(status);
  throw Error(code, what, {where, "", "onnxruntime " + version_ + ": " + message.substr(0, 600), fix});
}

DataType data_type(ElementType type) {
  switch (type) {
    case ElementType::kFloat32: return kFloat;
    case ElementType::kFloat16: return kFloat16;
    case ElementType::kBFloat16: return kBFloat16;
    case ElementType::kInt8: return kInt8;
    case ElementType::kInt64: break;
  }
  return kInt64;
}

Owned<Value> tensor_on(const Library& library, const MemoryInfo* memory, void* data, size_t bytes,
                       const std::vector<int64_t>& shape, ElementType type) {
  Value* value = nullptr;
  // No data, as of no image tokens, may not be a null pointer.
  static char nothing;
  library.check(library.api().CreateTensorWithDataAsOrtValue(memory, bytes == 0 ? &nothing : data, bytes, shape.data(),
                                                             shape.size(), data_type(type), &value),
                Code::kGraph, "ONNX Runtime refuses a tensor.", "tensor");
  return Owned<Value>(value, library.api().ReleaseValue);
}

Owned<MemoryInfo> cpu_memory(const Library& library) {
  MemoryInfo* memory = nullptr;
  library.check(library.api().CreateCpuMemoryInfo(kDeviceAllocator, kDefaultMemory, &memory), Code::kCapability,
                "ONNX Runtime cannot be set up.", library.path());
  return Owned<MemoryInfo>(memory, library.api().ReleaseMemoryInfo);
}

}  // namespace r1v::ort
