// Fields of JSON documents, with errors that name the field.
#pragma once

#include <cstdint>
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

// Throws kBundle: a field is not what it should be.
[[noreturn]] void throw_field(const std::string& field, const std::string& expected, const Json& found);

// A reader of one object: every access names the field in its error. Its functions are compiled once, in json.cpp: the
// JSON library's templates inside them would be most of what every file that reads a document is compiled for.
class Fields {
 public:
  // `where` names the object, such as "pipeline.json: tiling". `object` must outlive the reader. Throws kBundle if it
  // is none.
  Fields(const Json& object, std::string where);

  const std::string& where() const { return where_; }
  const Json& all() const { return object_; }
  bool has(const std::string& name) const;

  // Any value. Throws kBundle if there is none.
  const Json& at(const std::string& name) const;
  Fields object(const std::string& name) const;
  const Json& array(const std::string& name) const;
  std::string text(const std::string& name) const;
  bool flag(const std::string& name) const;
  // An integer from `least` to `most`.
  int64_t integer(const std::string& name, int64_t least, int64_t most) const;
  // A finite number.
  double number(const std::string& name) const;

  static int64_t integer_of(const Json& value, const std::string& field, int64_t least, int64_t most);

 private:
  const Json& object_;
  std::string where_;
};

}  // namespace r1v
