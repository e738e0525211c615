// A bundle, opened: its documents read, verified and parsed.
#pragma once

#include <filesystem>
#include <string>

#include "bundle/contract_document.h"
#include "bundle/manifest.h"
#include "bundle/pipeline_document.h"

namespace r1v {

struct Bundle {
  std::filesystem::path folder;
  Manifest manifest;
  Contract contract;
  Pipeline pipeline;

  // The content of a file, verified, such as "tokenizer.json". Throws kBundle.
  std::string read(const std::string& path, uint64_t limit_bytes) const {
    return read_verified(folder, manifest, path, limit_bytes);
  }
};

// Opens a bundle. What is read here and later by `read` is compared with the manifest; the weights, which an engine's
// library reads, only with `verify`, which reads every file.
// Throws kBundle: the folder is no bundle, is incomplete or altered, or of another version.
Bundle open_bundle(const std::filesystem::path& folder, bool verify = false);

}  // namespace r1v
