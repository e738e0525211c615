#include "base/json.h"

#include <cmath>
#include <utility>

namespace r1v {
namespace {

constexpr int kDeepest = 64;
constexpr size_t kMostCauseBytes = 300;

// "[json.exception.parse_error.101] parse error at line 1, column 2: ..." without the library's name of it, on one line
// and short: it quotes what was read last, which may be a whole file.
std::string cause(const std::string& message) {
  const size_t end = message.find("] ");
  return show(message.rfind("[json.exception.", 0) == 0 && end != message.npos ? message.substr(end + 2) : message,
              kMostCauseBytes);
}

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
    *found = cause(error.what());
  }
  return std::nullopt;
}

Json parse_json(const std::string& text, const std::string& where) {
  std::string found;
  if (std::optional<Json> document = read_json(text, &found)) return *std::move(document);
  throw Error(Code::kBundle, "A document of the bundle is malformed.",
              {where, "JSON", found, "fetch the bundle again, or build it again"});
}

void throw_field(const std::string& field, const std::string& expected, const Json& found) {
  const std::string text = found.dump(-1, ' ', true, Json::error_handler_t::replace);
  throw Error(Code::kBundle, "A document of the bundle is malformed.",
              {field, expected, text.substr(0, 200), "run r1v-export verify on the bundle, or build it again"});
}

Fields::Fields(const Json& object, std::string where) : object_(object), where_(std::move(where)) {
  if (!object.is_object()) throw_field(where_, "an object", object);
}

bool Fields::has(const std::string& name) const { return object_.contains(name); }

const Json& Fields::at(const std::string& name) const {
  const auto found = object_.find(name);
  if (found == object_.end()) throw_field(where_ + "." + name, "a value", Json("nothing"));
  return *found;
}

Fields Fields::object(const std::string& name) const { return Fields(at(name), where_ + "." + name); }

const Json& Fields::array(const std::string& name) const {
  const Json& value = at(name);
  if (!value.is_array()) throw_field(where_ + "." + name, "a list", value);
  return value;
}

std::string Fields::text(const std::string& name) const {
  const Json& value = at(name);
  if (!value.is_string()) throw_field(where_ + "." + name, "a text", value);
  return value.get<std::string>();
}

bool Fields::flag(const std::string& name) const {
  const Json& value = at(name);
  if (!value.is_boolean()) throw_field(where_ + "." + name, "true or false", value);
  return value.get<bool>();
}

int64_t Fields::integer(const std::string& name, int64_t least, int64_t most) const {
  return integer_of(at(name), where_ + "." + name, least, most);
}

double Fields::number(const std::string& name) const {
  const Json& value = at(name);
  if (!value.is_number() || !std::isfinite(value.get<double>())) throw_field(where_ + "." + name, "a number", value);
  return value.get<double>();
}

int64_t Fields::integer_of(const Json& value, const std::string& field, int64_t least, int64_t most) {
  const std::string expected = "a whole number from " + std::to_string(least) + " to " + std::to_string(most);
  const bool fits = value.is_number_integer() &&
                    !(value.is_number_unsigned() && value.get<uint64_t>() > uint64_t{INT64_MAX}) &&
                    value.get<int64_t>() >= least && value.get<int64_t>() <= most;
  if (!fits) throw_field(field, expected, value);
  return value.get<int64_t>();
}

}  // namespace r1v
