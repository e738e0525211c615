#include "base/shared_library.h"

#include <dlfcn.h>
#include <link.h>

#include <cstdlib>

#include "base/error.h"

namespace r1v {
namespace {

namespace fs = std::filesystem;

// The library in a folder, if `path` is one.
std::string library_in(const LibrarySearch& search, const std::string& path) {
  std::error_code error;
  if (!fs::is_directory(path, error)) return path;
  std::string found;
  for (const auto& each : fs::directory_iterator(path, error)) {
    const std::string name = each.path().filename().string();
    if (name.rfind(search.file, 0) == 0 && each.path().string() > found) found = each.path().string();
  }
  if (!found.empty()) return found;
  throw Error(Code::kCapability, "There is no " + search.name + " in this folder.",
              {path, search.file, "", search.fix});
}

std::vector<std::string> candidates(const LibrarySearch& search, const std::string& path) {
  if (!path.empty()) return {library_in(search, path)};
  const char* setting = std::getenv(search.variable.c_str());
  if (setting != nullptr && *setting != '\0') return {library_in(search, setting)};
  return search.sonames;
}

}  // namespace

void* SharedLibrary::find(const char* name) const { return ::dlsym(handle, name); }

void* SharedLibrary::function(const char* symbol) const {
  if (void* found = find(symbol)) return found;
  throw Error(Code::kCapability, "This library is not " + name + ".", {path, symbol, "no such symbol", fix});
}

fs::path SharedLibrary::file() const {
  link_map* map = nullptr;
  return ::dlinfo(handle, RTLD_DI_LINKMAP, &map) == 0 ? map->l_name : path;
}

fs::path file_of(const void* address) {
  Dl_info info{};
  return ::dladdr(address, &info) != 0 && info.dli_fname != nullptr ? info.dli_fname : "";
}

SharedLibrary open_library(const LibrarySearch& search, const std::string& path) {
  std::string tried, message;
  for (const std::string& each : candidates(search, path)) {
    tried += (tried.empty() ? "" : ", ") + each;
    void* handle = ::dlopen(each.c_str(), RTLD_NOW | (search.is_global ? RTLD_GLOBAL : RTLD_LOCAL));
    if (handle != nullptr) return {search.name, each, search.fix, handle};
    message += (message.empty() ? "" : "; ") + std::string(::dlerror());
  }
  throw Error(Code::kCapability, search.name + "'s library cannot be opened.",
              {tried, search.file, message, search.fix});
}

}  // namespace r1v
