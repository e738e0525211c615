#include "triton/request_fields.h"

#include <cmath>

namespace r1v::triton {

Json parse_request_json(const std::string& text, const std::string& what) {
  std::string found;
  if (std::optional<Json> value = read_json(text, &found)) return *std::move(value);
  throw Error(Code::kInput, what + ": not JSON.", {"", "", found, ""});
}

void throw_request_field(const std::string& what, const std::string& field, const std::string& expected,
                         const Json& found) {
  const std::string text = found.dump(-1, ' ', true, Json::error_handler_t::replace);
  throw Error(Code::kInput, what + ".", {field, expected, text.substr(0, 200), ""});
}

RequestFields::RequestFields(const Json& object, std::string where, std::string what)
    : object_(object), where_(std::move(where)), what_(std::move(what)) {
  if (!object.is_object()) throw_request_field(what_, where_, "an object", object);
}

const Json* RequestFields::find(const std::string& name) {
  known_.insert(name);
  const auto found = object_.find(name);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

const Json& RequestFields::require(const std::string& name, const std::string& expected) {
  if (const Json* found = find(name)) return *found;
  refuse(name, expected, Json("nothing"));
}

std::optional<std::string> RequestFields::text(const std::string& name) {
  const Json* found = find(name);
  if (found == nullptr) return std::nullopt;
  if (!found->is_string()) refuse(name, "a text", *found);
  return found->get<std::string>();
}

std::optional<double> RequestFields::number(const std::string& name) {
  const Json* found = find(name);
  if (found == nullptr) return std::nullopt;
  if (!found->is_number()) refuse(name, "a number", *found);
  return found->get<double>();
}

std::optional<uint64_t> RequestFields::count(const std::string& name, uint64_t most) {
  const Json* found = find(name);
  if (found == nullptr) return std::nullopt;
  const std::string expected = "a whole number from 0 to " + std::to_string(most);
  uint64_t value = 0;
  if (found->is_number_float()) {  // 5.0 is whole, too
    const double given = found->get<double>();
    constexpr double kExact = 9007199254740992.0;  // 2^53: up to here every whole number is itself
    if (given < 0 || given > kExact || given != std::floor(given)) refuse(name, expected, *found);
    value = static_cast<uint64_t>(given);
  } else {
    if (!found->is_number_unsigned()) refuse(name, expected, *found);
    value = found->get<uint64_t>();
  }
  if (value > most) refuse(name, expected, *found);
  return value;
}

std::optional<bool> RequestFields::flag(const std::string& name) {
  const Json* found = find(name);
  if (found == nullptr) return std::nullopt;
  if (!found->is_boolean()) refuse(name, "true or false", *found);
  return found->get<bool>();
}

void RequestFields::require_no_others() const {
  for (const auto& [name, value] : object_.items()) {
    if (known_.count(name) == 0) refuse(name, "no such field", value);
  }
}

}  // namespace r1v::triton
