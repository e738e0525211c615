#include "backends/tensorrt/plan.h"

#include <algorithm>

#include "base/files.h"

namespace r1v::trt {
namespace {

namespace fs = std::filesystem;

constexpr char kRebuild[] = "build the bundle again";
constexpr int64_t kMostOfASize = int64_t{1} << 31;

Binding parse_binding(const Fields& fields) {
  Binding binding{
      fields.text("name"), fields.flag("is_input"), element_type(fields.text("dtype"), fields.where() + ".dtype"), {}};
  for (const Json& dim : fields.array("shape")) {
    if (dim.is_string()) {
      binding.shape.emplace_back(dim.get<std::string>());
    } else {
      binding.shape.emplace_back(Fields::integer_of(dim, fields.where() + ".shape", 1, kMostOfASize));
    }
  }
  return binding;
}

Profile parse_profile(const Fields& fields) {
  Profile profile;
  for (const auto& [symbol, content] : fields.all().items()) {
    const std::string where = fields.where() + "." + symbol;
    const Json& sizes = fields.array(symbol);
    if (sizes.size() != 3) throw_field(where, "least, best and most", sizes);
    const int64_t min = Fields::integer_of(sizes[0], where, 1, kMostOfASize);
    profile[symbol] = {min, Fields::integer_of(sizes[2], where, min, kMostOfASize)};
  }
  return profile;
}

// "batch 1 to 4, seq 1 to 2048"
std::string shown(const Profile& profile) {
  std::string text;
  for (const auto& [symbol, range] : profile) {
    text += (text.empty() ? "" : ", ") + symbol + " " + std::to_string(range.min) + " to " + std::to_string(range.max);
  }
  return text;
}

}  // namespace

std::vector<int64_t> Binding::shape_of(const SymbolSizes& sizes) const {
  std::vector<int64_t> result;
  for (const auto& dim : shape) {
    if (const auto* size = std::get_if<int64_t>(&dim)) {
      result.push_back(*size);
      continue;
    }
    const auto found = sizes.find(std::get<std::string>(dim));
    if (found == sizes.end()) {
      throw Error(Code::kBundle, "A plan's tensor has a symbol that this version does not know.",
                  {name, "", std::get<std::string>(dim), kRebuild});
    }
    result.push_back(found->second);
  }
  return result;
}

const Binding& Plan::binding(const std::string& name) const {
  const auto found =
      std::find_if(bindings.begin(), bindings.end(), [&](const Binding& each) { return each.name == name; });
  if (found != bindings.end()) return *found;
  throw Error(Code::kBundle, "A plan lacks a tensor of the contract.", {file, name, "", kRebuild});
}

int64_t Plan::max(const std::string& symbol) const {
  int64_t most = 0;
  for (const Profile& profile : profiles) {
    const auto found = profile.find(symbol);
    if (found != profile.end()) most = std::max(most, found->second.max);
  }
  if (most > 0) return most;
  throw Error(Code::kBundle, "A plan's profiles lack a symbol.", {file, symbol, "", kRebuild});
}

int Plan::profile_for(const SymbolSizes& sizes) const {
  const auto takes = [&](const Profile& profile) {
    return std::all_of(profile.begin(), profile.end(), [&](const auto& each) {
      const auto size = sizes.find(each.first);
      return size != sizes.end() && each.second.min <= size->second && size->second <= each.second.max;
    });
  };
  const auto width = [](const Profile& profile) {
    int64_t sum = 0;
    for (const auto& [symbol, range] : profile) sum += range.max - range.min;
    return sum;
  };
  std::optional<size_t> narrowest;
  for (size_t i = 0; i < profiles.size(); ++i) {
    if (takes(profiles[i]) && (!narrowest || width(profiles[i]) < width(profiles[*narrowest]))) narrowest = i;
  }
  if (narrowest) return static_cast<int>(*narrowest);
  std::string expected, found;
  for (const Profile& profile : profiles) expected += (expected.empty() ? "" : "; or ") + shown(profile);
  for (const auto& [symbol, size] : sizes) found += (found.empty() ? "" : ", ") + symbol + " " + std::to_string(size);
  throw Error(Code::kUsage, "An engine was not built for these sizes.",
              {file, expected, found, "build with a wider `tensorrt:` block in the build file"});
}

Plan read_plan(const Bundle& bundle, const std::string& target, const std::string& graph) {
  const EngineDocument& engine = bundle.pipeline.engines.at(target);
  const std::string where = "pipeline.json: engines." + target;
  const Fields options(engine.options, where + ".options");
  for (const auto& [name, value] : options.all().items()) {
    if (name != "descriptions" && name != "graphs")
      throw_field(options.where() + "." + name, "an option that this version knows", value);
  }
  const auto file = engine.files.find(graph);
  if (file == engine.files.end()) throw_field(where + ".files", graph, "nothing");
  const fs::path folder = fs::path("engines") / target;
  const std::string description = (folder / options.object("descriptions").text(graph)).generic_string();

  const Json document = parse_json(bundle.read(description, kTextLimitBytes), description);
  const Fields fields(document, description);
  Plan plan{graph, (folder / file->second).generic_string(), fields.text("library"), fields.text("version"), {}, {}, {},
            0};
  plan.bytes = static_cast<uint64_t>(fields.integer("plan_bytes", 1, INT64_MAX));
  for (const Json& each : fields.array("compute_capabilities")) {
    plan.compute_capabilities.push_back(Fields::integer_of(each, description + ".compute_capabilities", 1, 10000));
  }
  for (const Json& each : fields.array("bindings")) {
    plan.bindings.push_back(parse_binding(Fields(each, description + ".bindings")));
  }
  for (const Json& each : fields.array("profiles")) {
    plan.profiles.push_back(parse_profile(Fields(each, description + ".profiles")));
  }
  if (fields.flag("stripped")) {
    throw Error(Code::kCapability, "libr1v runs plans with their weights only.",
                {plan.file, "", "a plan that is refitted from the bundle's weights", "build with `strip: false`"});
  }
  std::error_code error;
  const uintmax_t found = fs::file_size(bundle.folder / plan.file, error);
  if (error || found != plan.bytes) {
    throw Error(Code::kBundle, "A plan is not the one that was built.",
                {plan.file, std::to_string(plan.bytes) + " bytes",
                 error ? error.message() : std::to_string(found) + " bytes", kRebuild});
  }
  return plan;
}

void require_library(const Plan& plan, const std::string& library) {
  const std::string built_with = plan.library + " " + plan.version;
  if (built_with == library) return;
  throw PlanMismatch(Code::kBundle, "A plan is of another version of TensorRT.",
                     {plan.file, library, built_with, "build the bundle again, or use a library of that version"});
}

void require_gpu(const Plan& plan, int compute_capability) {
  const auto& built_for = plan.compute_capabilities;
  if (std::find(built_for.begin(), built_for.end(), compute_capability) != built_for.end()) return;
  std::string found;
  for (int64_t each : built_for) found += (found.empty() ? "" : ", ") + std::to_string(each);
  throw PlanMismatch(Code::kBundle, "A plan is for another GPU.",
                     {plan.file, "compute capability " + std::to_string(compute_capability), found,
                      "build with --target " + plan.library + " for this GPU"});
}

}  // namespace r1v::trt
