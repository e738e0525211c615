// How an answer is sampled, as JSON: r1v_export/deploy/triton/sampling_parameters.py.
#pragma once

#include <string>

#include "sampling/sampling.h"

namespace r1v::triton {

// `sampling` with what the JSON says instead; whether values are in their ranges, the runner sees. Throws kInput: a
// field is unknown or malformed; kUsage: a field asks for a form of the answer, of which libr1v has none.
Sampling read_sampling(const std::string& parameters, Sampling sampling);

}  // namespace r1v::triton
