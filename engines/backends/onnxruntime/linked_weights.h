// Weights behind links, as hub caches keep them: ONNX Runtime reads none that lie outside the folder it is given.
#pragma once

#include <filesystem>
#include <string>

namespace r1v::ort {

// An ONNX file, and the folder that its weights' locations are relative to.
struct PlacedModel {
  std::string content;
  std::filesystem::path weights_folder;
};

// Lets the weights of a model be found where the links below `root` lead to; no weight is copied.
// `root`: what the locations are relative to. Throws kBundle, naming `where` or the file: this is no ONNX file, a
// location leads out of `root` other than by a link, or a file is missing or no regular file.
PlacedModel follow_links(std::string model, const std::filesystem::path& root, const std::string& where);

}  // namespace r1v::ort
