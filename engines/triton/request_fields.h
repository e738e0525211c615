// The JSON of a request, read strictly: a field that nobody asks for is refused, never ignored.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>

#include "base/json.h"

namespace r1v::triton {

// `what` is what is invalid, a sentence without its full stop: "messages is no conversation".
// Throws kInput: the text is not JSON, not UTF-8, or nested too deep.
Json parse_request_json(const std::string& text, const std::string& what);

[[noreturn]] void throw_request_field(const std::string& what, const std::string& field, const std::string& expected,
                                      const Json& found);

// A reader of one object. Every field may be omitted, which null says, too, unless `require` asks for it. All throw
// kInput, naming the field.
class RequestFields {
 public:
  // `where` names the object, such as "messages[0]". `object` must outlive the reader.
  RequestFields(const Json& object, std::string where, std::string what);

  const std::string& where() const { return where_; }
  std::string place(const std::string& name) const { return where_.empty() ? name : where_ + "." + name; }

  // Any value but null; nullptr where there is none.
  const Json* find(const std::string& name);
  const Json& require(const std::string& name, const std::string& expected);

  std::optional<std::string> text(const std::string& name);
  std::optional<double> number(const std::string& name);
  // A whole number of 0 or more.
  std::optional<uint64_t> count(const std::string& name, uint64_t most = INT64_MAX);
  std::optional<bool> flag(const std::string& name);

  [[noreturn]] void refuse(const std::string& name, const std::string& expected, const Json& found) const {
    throw_request_field(what_, place(name), expected, found);
  }
  // To be called after all fields that there may be.
  void require_no_others() const;

 private:
  const Json& object_;
  const std::string where_, what_;
  std::set<std::string> known_;
};

}  // namespace r1v::triton
