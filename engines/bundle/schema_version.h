// The version that every document of a bundle begins with.
#pragma once

#include "base/json.h"

namespace r1v {

// Throws kBundle: the document has another schema version than `expected`.
inline void require_schema_version(const Fields& document, int expected) {
  const Json found = document.has("schema_version") ? document.at("schema_version") : Json();
  if (found.is_number_integer() && found == expected) return;
  throw Error(Code::kBundle, "The bundle is of another schema version.",
              {document.where(), std::to_string(expected), found.dump().substr(0, 100),
               "build the bundle again, or use a libr1v of its version"});
}

}  // namespace r1v
