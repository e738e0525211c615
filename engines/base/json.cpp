#include "base/json.h"

namespace r1v {
namespace {

constexpr int kDeepest = 64;

}  // namespace

Json parse_json(const std::string& text, const std::string& where) {
  bool too_deep = false;
  const auto watch = [&](int depth, Json::parse_event_t, Json&) {
    if (depth > kDeepest) too_deep = true;
    return !too_deep;
  };
  std::string found;
  try {
    Json document = Json::parse(text, watch);
    if (!too_deep) return document;
    found = "more than " + std::to_string(kDeepest) + " levels";
  } catch (const Json::exception& error) {
    found = error.what();
  }
  throw Error(Code::kBundle, "A document of the bundle is malformed.",
              {where, "JSON", found, "fetch the bundle again, or build it again"});
}

}  // namespace r1v
