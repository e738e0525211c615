// Shared libraries that are opened at run time, wherever the caller, the environment or the loader has them.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace r1v {

// How a library is found.
struct LibrarySearch {
  std::string name;                  // in words: "ONNX Runtime"
  std::string file;                  // how its file's name begins: "libonnxruntime.so"
  std::string variable;              // of the environment: the library's path, or its folder's
  std::vector<std::string> sonames;  // that the loader is asked for, in order
  std::string fix;                   // what to do where it is not found
  bool is_global = false;            // its symbols are there for libraries that are opened later
};

// A library; it stays open for the process's life.
struct SharedLibrary {
  std::string name, path, fix;
  void* handle;

  // A function, by its name. Throws kCapability: there is none.
  void* function(const char* name) const;
  // The same, or null.
  void* find(const char* name) const;
  // Its file, wherever the loader found it.
  std::filesystem::path file() const;
};

// `path` is a library or a folder that has one; where it is empty, the environment's variable is taken, else what the
// loader finds. Throws kCapability: there is none, or it does not load.
SharedLibrary open_library(const LibrarySearch& search, const std::string& path);

// The program or library that an address is part of, as libr1v is of its functions'; empty where the loader knows none.
std::filesystem::path file_of(const void* address);

}  // namespace r1v
