#include "backends/tensorrt_llm/library.h"

#include <cstdlib>
#include <system_error>

#include "base/error.h"
#include "base/shared_library.h"

namespace r1v::trtllm {
namespace {

namespace fs = std::filesystem;

constexpr char kName[] = "TensorRT-LLM", kFile[] = "libtensorrt_llm.so",
               kPlugins[] = "libnvinfer_plugin_tensorrt_llm.so", kModule[] = "libr1v_tensorrt_llm.so",
               kModuleVariable[] = "R1V_TENSORRT_LLM_MODULE";
constexpr char kVersions[] = "TensorRT-LLM 1.0, 1.1 or 1.2; later releases have no engines";
constexpr char kInstall[] =
    "install TensorRT-LLM and name its libtensorrt_llm.so by the option tensorrt_llm_library or by R1V_TENSORRT_LLM";
constexpr char kCompile[] =
    "compile libr1v with -DR1V_TENSORRT_LLM_INCLUDE=FOLDER, and with R1V_TENSORRT_INCLUDE and R1V_CUDA_INCLUDE, which "
    "its headers need; or omit the engine: other targets of the bundle need none";

// Where libr1v's module is: the environment's word, else next to libr1v, or to the program that it is part of.
std::string module_path() {
  const char* setting = std::getenv(kModuleVariable);
  if (setting != nullptr && *setting != '\0') return setting;
  return (file_of(reinterpret_cast<const void*>(&module_path)).parent_path() / kModule).string();
}

// `tensorrt_llm::executor::version()`, by the name that compilers give it.
std::string version_of(const SharedLibrary& library) {
  const auto version = library.function("_ZN12tensorrt_llm8executor7versionEv");
  return reinterpret_cast<const char* (*)()>(version)();
}

void require_supported(const std::string& version, const std::string& where) {
  const bool supported = version.size() > 3 && version.compare(0, 2, "1.") == 0 && version[2] >= '0' &&
                         version[2] <= '2' && version[3] == '.';
  if (supported) return;
  throw Error(Code::kCapability, "This version of TensorRT-LLM cannot be used.", {where, kVersions, version, kInstall});
}

// Registers the plugins that engines consist of. They lie next to the library, or one folder deeper where it was built.
void register_plugins(const fs::path& folder) {
  std::error_code error;
  const bool deeper = !fs::exists(folder / kPlugins, error) && fs::exists(folder / "plugins" / kPlugins, error);
  const fs::path file = folder / (deeper ? "plugins" : "") / kPlugins;
  const SharedLibrary plugins =
      open_library({"TensorRT-LLM's plugins", kPlugins, "", {}, kInstall, true}, file.string());
  const auto init = reinterpret_cast<bool (*)(void*, const char*)>(plugins.function("initTrtLlmPlugins"));
  if (init(nullptr, "tensorrt_llm")) return;
  throw Error(Code::kCapability, "TensorRT-LLM's plugins cannot be set up.", {file.string(), "", "", kInstall});
}

const r1v_trtllm_module* open_module(const std::string& version) {
  const SharedLibrary opened = open_library({"libr1v's TensorRT-LLM module", kModule, "", {}, kCompile}, module_path());
  const auto find = reinterpret_cast<const r1v_trtllm_module* (*)()>(opened.function(R1V_TRTLLM_MODULE_SYMBOL));
  const r1v_trtllm_module* module = find();
  if (module->module_version != R1V_TRTLLM_MODULE_VERSION) {
    throw Error(Code::kCapability, "The TensorRT-LLM module is of another libr1v.",
                {opened.path, std::to_string(R1V_TRTLLM_MODULE_VERSION), std::to_string(module->module_version),
                 "install both from one build"});
  }
  // Its classes are laid out otherwise in another version.
  if (module->headers_version != version) {
    throw Error(Code::kCapability, "This libr1v is compiled for another version of TensorRT-LLM.",
                {opened.path, module->headers_version, version,
                 "compile libr1v with the headers of this version, or install the other one"});
  }
  return module;
}

}  // namespace

bool is_compiled_in() {
  std::error_code error;
  return fs::exists(module_path(), error);
}

Library::Library(const std::string& path) {
  if (!is_compiled_in()) {
    throw Error(Code::kCapability, "This libr1v was compiled without TensorRT-LLM.",
                {module_path(), "TensorRT-LLM's executor.h where libr1v is compiled", "no such file", kCompile});
  }
  // Global: the module's undefined symbols are the library's.
  const SharedLibrary library = open_library({kName, kFile, "R1V_TENSORRT_LLM", {kFile}, kInstall, true}, path);
  const fs::path file = library.file();
  folder_ = file.parent_path();
  version_ = version_of(library);
  require_supported(version_, file.string());
  register_plugins(folder_);
  module_ = open_module(version_);
}

}  // namespace r1v::trtllm
