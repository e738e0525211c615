#include "base/json.h"

namespace r1v {
namespace {

constexpr int kDeepest = 64;

}  // namespace

std::optional<Json> read_json(const std::string& text, std::string* found) {
  bool too_deep = false;
  const auto watch = [&](int depth, Json::parse_event_t, Json&) {
    if (depth > kDeepest) too_deep = true;
    return !too_deep;
  };
  try {
    Json document = Json::parse(text, watch);
    if (!too_deep) return document;
    *found = "more than " + std::to_string(kDeepest) + " levels";
  } catch (const Json::exception& error) {
    *found = error.what();
  }
  return std::nullopt;
}

Json parse_json(const std::string& text, const std::string& where) {
  std::string found;
  if (std::optional<Json> document = read_json(text, &found)) return *std::move(document);
  throw Error(Code::kBundle, "A document of the bundle is malformed.",
              {where, "JSON", found, "fetch the bundle again, or build it again"});
}

}  // namespace r1v
