// How the target onnxruntime of a bundle is to be opened: `options` of its engine in pipeline.json (docs/bundle.md).
#pragma once

#include <filesystem>
#include <map>
#include <string>

#include "bundle/bundle.h"

namespace r1v::ort {

using Entries = std::map<std::string, std::string>;

// By default one thread brings the weights into their kernels' layouts while the others wait.
constexpr char kParallelPrepack[] = "session.prepack.enable_parallel";

struct GraphOptions {
  std::string file;                    // path inside the bundle
  std::filesystem::path weights_root;  // what the locations of its weights are relative to
  std::string weights_root_entry;      // of the session's configuration, which names the folder of the weights
  Entries entries;                     // of the session's configuration
  int64_t threads;                     // 0 for the cores that this process may use
};

struct Options {
  std::map<std::string, GraphOptions> graphs;
  int64_t image_tokens_per_run;  // image tokens that the vision graph takes at once on a CPU
  // Whether slots of the cache behind a row's length cost nothing, so that there may be more than are asked for.
  bool attention_stops_at_length = false;
};

// Throws kBundle: an option is missing, wrong or unknown, or leads out of the bundle.
Options parse_options(const Bundle& bundle, const std::string& target);

// Whether an engine of the bundle has graphs that encode images in a folder of it.
bool has_image_graphs(const Bundle& bundle, const std::string& target, const std::string& folder);

// Of such graphs, which are opened as the engine's own but for what their weights ask for.
Options image_options(const Bundle& bundle, const std::string& target, const std::string& folder, const Options& own);

// Of the bundle's standard graphs that encode images, which no engine's options describe: as the Python runtime opens
// them (r1v_export/targets/onnxruntime/session_options.py). Throws kBundle: the bundle has none.
Options standard_vision_options(const Bundle& bundle);

}  // namespace r1v::ort
