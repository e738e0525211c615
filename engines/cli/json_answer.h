// What `run --format json` prints, as the Python program does.
#pragma once

#include "cli/json_text.h"
#include "r1v/r1v.hpp"

namespace r1v::cli {

// A finished answer, and how its tokens were chosen.
OrderedJson answer_json(const api::Answer& answer, const r1v_sampling& sampling);

OrderedJson error_json(const api::Error& error, int exit_code);

}  // namespace r1v::cli
