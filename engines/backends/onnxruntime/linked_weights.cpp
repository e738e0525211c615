#include "backends/onnxruntime/linked_weights.h"

#include <algorithm>
#include <map>

#include "backends/onnxruntime/graph_message.h"
#include "base/files.h"

namespace r1v::ort {
namespace {

namespace fs = std::filesystem;

// Without links; what is missing at its end may be.
fs::path real_path(const fs::path& path) {
  std::error_code error;
  fs::path real = fs::weakly_canonical(path, error);
  if (error) throw Error(Code::kBundle, "A path cannot be followed.", {path.string(), "", error.message(), ""});
  return real;
}

fs::path real_file(const fs::path& root, const std::string& location, const std::string& where) {
  if (!is_inside(location)) {
    throw Error(Code::kBundle, "A graph's weights lie outside its bundle.",
                {where, "a path inside the bundle", location, "fetch the bundle again, or build it again"});
  }
  require_regular(root / location);
  return real_path(root / location);
}

// What two absolute paths have in common.
fs::path common_folder(const fs::path& a, const fs::path& b) {
  fs::path common;
  for (auto [left, right] = std::pair(a.begin(), b.begin()); left != a.end() && right != b.end() && *left == *right;
       ++left, ++right) {
    common /= *left;
  }
  return common;
}

}  // namespace

PlacedModel follow_links(std::string model, const fs::path& root, const std::string& where) {
  std::map<std::string, fs::path> files;
  with_locations(
      model,
      [&](const std::string& location) {
        if (files.count(location) == 0) files[location] = real_file(root, location, where);
        return location;
      },
      where);
  const fs::path real_root = real_path(root);
  if (std::all_of(files.begin(), files.end(), [&](const auto& each) { return each.second == real_root / each.first; }))
    return {std::move(model), real_root};
  fs::path folder = files.begin()->second.parent_path();
  for (const auto& [location, file] : files) folder = common_folder(folder, file.parent_path());
  const auto placed = [&](const std::string& location) {
    return files.at(location).lexically_relative(folder).generic_string();
  };
  return {with_locations(model, placed, where), folder};
}

}  // namespace r1v::ort
