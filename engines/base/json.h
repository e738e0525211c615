// Fields of JSON documents, with errors that name the field.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"

namespace r1v {

using Json = nlohmann::json;

// The value that a text is; nothing, and the cause in `found`, where it is not JSON, not UTF-8, or nested too deep.
std::optional<Json> read_json(const std::string& text, std::string* found);

// A document of a bundle. Throws kBundle, naming `where`, for the same causes.
Json parse_json(const std::string& text, const std::string& where);

[[noreturn]] inline void throw_field(const std::string& field, const std::string& expected, const Json& found) {
  const std::string text = found.dump(-1, ' ', true, Json::error_handler_t::replace);
  throw Error(Code::kBundle, "A document of the bundle is malformed.",
              {field, expected, text.substr(0, 200), "run r1v-export verify on the bundle, or build it again"});
}

// A reader of one object: every access names the field in its error.
class Fields {
 public:
  // `where` names the object, such as "pipeline.json: tiling". `object` must outlive the reader. Throws kBundle if it
  // is none.
  Fields(const Json& object, std::string where) : object_(object), where_(std::move(where)) {
    if (!object.is_object()) throw_field(where_, "an object", object);
  }

  const std::string& where() const { return where_; }
  const Json& all() const { return object_; }
  bool has(const std::string& name) const { return object_.contains(name); }

  // Any value. Throws kBundle if there is none.
  const Json& at(const std::string& name) const {
    const auto found = object_.find(name);
    if (found == object_.end()) throw_field(where_ + "." + name, "a value", Json("nothing"));
    return *found;
  }
  Fields object(const std::string& name) const { return Fields(at(name), where_ + "." + name); }
  const Json& array(const std::string& name) const {
    const Json& value = at(name);
    if (!value.is_array()) throw_field(where_ + "." + name, "a list", value);
    return value;
  }
  std::string text(const std::string& name) const {
    const Json& value = at(name);
    if (!value.is_string()) throw_field(where_ + "." + name, "a text", value);
    return value.get<std::string>();
  }
  bool flag(const std::string& name) const {
    const Json& value = at(name);
    if (!value.is_boolean()) throw_field(where_ + "." + name, "true or false", value);
    return value.get<bool>();
  }
  // An integer from `least` to `most`.
  int64_t integer(const std::string& name, int64_t least, int64_t most) const {
    return integer_of(at(name), where_ + "." + name, least, most);
  }
  // A finite number.
  double number(const std::string& name) const {
    const Json& value = at(name);
    if (!value.is_number() || !std::isfinite(value.get<double>())) throw_field(where_ + "." + name, "a number", value);
    return value.get<double>();
  }

  static int64_t integer_of(const Json& value, const std::string& field, int64_t least, int64_t most) {
    const std::string expected = "a whole number from " + std::to_string(least) + " to " + std::to_string(most);
    const bool fits = value.is_number_integer() &&
                      !(value.is_number_unsigned() && value.get<uint64_t>() > uint64_t{INT64_MAX}) &&
                      value.get<int64_t>() >= least && value.get<int64_t>() <= most;
    if (!fits) throw_field(field, expected, value);
    return value.get<int64_t>();
  }

 private:
  const Json& object_;
  std::string where_;
};

}  // namespace r1v
