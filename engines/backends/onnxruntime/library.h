// ONNX Runtime's shared library, opened at run time, and owners of what it makes.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backends/onnxruntime/ort_api.h"
#include "bundle/contract_document.h"

namespace r1v::ort {

// The library, once per path and process. It is never unloaded: its threads would not survive that.
class Library {
 public:
  // `path` is a library, or the folder that has one, such as site-packages/onnxruntime/capi. Where it is empty, the
  // environment's R1V_ONNXRUNTIME is taken, else what the loader finds. Throws kCapability: there is none, or it is
  // older than the API used here.
  static const Library& open(const std::string& path = "");

  const Api& api() const { return api_; }
  const Env* env() const { return env_; }
  const std::string& version() const { return version_; }
  const std::string& path() const { return path_; }
  std::vector<std::string> providers() const;

  // Throws `code` with ONNX Runtime's message if `status` is an error; frees it.
  void check(Status* status, Code code, const std::string& what, const std::string& where,
             const std::string& fix = "") const;

 private:
  explicit Library(const std::string& path);

  std::string path_, version_;
  Api api_;
  Env* env_ = nullptr;
};

// An object of the library, released with the function of its kind.
template <typename Object>
class Owned {
 public:
  Owned() = default;
  Owned(Object* object, void (*release)(Object*)) : object_(object, release) {}
  Object* get() const { return object_.get(); }

 private:
  std::unique_ptr<Object, void (*)(Object*)> object_{nullptr, nullptr};
};

// A tensor's element type as ONNX Runtime has it.
DataType data_type(ElementType type);

// A tensor on memory of the caller's, which must outlive it.
Owned<Value> tensor_on(const Library& library, const MemoryInfo* memory, void* data, size_t bytes,
                       const std::vector<int64_t>& shape, ElementType type);

// Memory of the CPU.
Owned<MemoryInfo> cpu_memory(const Library& library);

}  // namespace r1v::ort
