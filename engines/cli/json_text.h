// JSON as Python's json.dumps writes it (r1v_export/cli/streams.py, `json_text`).
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace r1v::cli {

using OrderedJson = nlohmann::ordered_json;

// Indented by two spaces, or on one line. Texts are UTF-8.
std::string json_text(const OrderedJson& value, bool one_line = false);

}  // namespace r1v::cli
