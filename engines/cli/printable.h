// Texts of a model or a stranger, for a terminal (r1v_export/quoting.py, `printable`).
#pragma once

#include <string>
#include <string_view>

namespace r1v::cli {

// Line ends and tabs stay; symbols stand for what terminals obey: control characters and marks of direction. The text
// is UTF-8.
std::string printable(std::string_view text);

}  // namespace r1v::cli
