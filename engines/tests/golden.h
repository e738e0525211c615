// Golden vectors that the Python tests write: tests/engines/.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>

#include "base/error.h"
#include "base/files.h"
#include "base/json.h"

namespace r1v {

// A folder below R1V_GOLDEN_DIR; empty if the variable is not set. Throws kInput: it is set, and the folder is not
// there.
inline std::filesystem::path golden_folder(const char* name) {
  const char* root = std::getenv("R1V_GOLDEN_DIR");
  if (root == nullptr) return {};
  const std::filesystem::path folder = std::filesystem::path(root) / name;
  if (!std::filesystem::is_directory(folder))
    throw Error(Code::kInput, "No golden vectors.", {folder.string(), "", "", ""});
  return folder;
}

inline Json read_golden(const std::filesystem::path& file) {
  return parse_json(read_file(file, uint64_t{1} << 30), file.string());
}

}  // namespace r1v

// For the first line of a test that needs golden vectors: pytest runs it with them.
#define GOLDEN_FOLDER(variable, name)                              \
  const std::filesystem::path variable = r1v::golden_folder(name); \
  if (variable.empty()) GTEST_SKIP() << "R1V_GOLDEN_DIR is not set: tests/engines runs this test"
