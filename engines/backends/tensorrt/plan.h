// The description of a plan, a small JSON file next to it: r1v_export/targets/tensorrt/build/plan.py writes it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "bundle/bundle.h"

namespace r1v::trt {

// Symbols of shapes, and how large each is in a run.
using SymbolSizes = std::map<std::string, int64_t>;

inline constexpr char kTiles[] = "tiles", kBatch[] = "batch", kSeq[] = "seq", kLogitPositions[] = "logit_positions";

// One input or output.
struct Binding {
  std::string name;
  bool is_input;
  ElementType dtype;
  std::vector<std::variant<int64_t, std::string>> shape;  // sizes, and symbols that profiles give ranges to

  // Its shape in a run. Throws kBundle: a symbol without a size.
  std::vector<int64_t> shape_of(const SymbolSizes& sizes) const;
};

struct Range {
  int64_t min, max;
};

// Symbol -> the sizes that it takes.
using Profile = std::map<std::string, Range>;

struct Plan {
  std::string graph;
  std::string file;              // path inside the bundle
  std::string library, version;  // that it was built with
  std::vector<int64_t> compute_capabilities;
  std::vector<Binding> bindings;
  std::vector<Profile> profiles;
  uint64_t bytes;

  const Binding& binding(const std::string& name) const;
  // The largest size of a symbol, over all profiles.
  int64_t max(const std::string& symbol) const;
  // The number of the narrowest profile that takes these sizes. Throws kUsage: there is none.
  int profile_for(const SymbolSizes& sizes) const;
};

// The plan of a graph. Throws kBundle: its description or the plan is missing, malformed, or cut short; kCapability:
// the plan has no weights of its own.
Plan read_plan(const Bundle& bundle, const std::string& target, const std::string& graph);

// A plan that is sound and for another library or GPU.
class PlanMismatch : public Error {
 public:
  using Error::Error;
};

// Throws PlanMismatch, a kBundle: a plan was built by another library, which is "tensorrt 10.13.3.9".
void require_library(const Plan& plan, const std::string& library);
// Throws PlanMismatch, a kBundle: a plan was built for other GPUs than one of this compute capability, 89 for 8.9.
void require_gpu(const Plan& plan, int compute_capability);

}  // namespace r1v::trt
