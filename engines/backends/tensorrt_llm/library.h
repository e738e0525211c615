// TensorRT-LLM's shared libraries and libr1v's module for them, opened at run time.
#pragma once

#include <filesystem>
#include <string>

#include "backends/tensorrt_llm/module.h"

namespace r1v::trtllm {

// Whether there is a module: libr1v was compiled with TensorRT-LLM's headers.
bool is_compiled_in();

// The libraries stay open for the process's life.
class Library {
 public:
  // `path` is libtensorrt_llm.so or its folder; where it is empty, R1V_TENSORRT_LLM of the environment is taken, else
  // what the loader finds. The plugins are looked for next to it. Throws kCapability: libr1v was compiled without
  // TensorRT-LLM, or the library is not here, or not of the version that the module is compiled with.
  explicit Library(const std::string& path);

  const r1v_trtllm_module& module() const { return *module_; }
  // Of the library: "1.2.0".
  const std::string& version() const { return version_; }
  // The program that is each rank's process, where an engine has several: next to the library's folder.
  std::filesystem::path worker() const { return folder_.parent_path() / "bin" / "executorWorker"; }

 private:
  std::filesystem::path folder_;
  std::string version_;
  const r1v_trtllm_module* module_;
};

}  // namespace r1v::trtllm
