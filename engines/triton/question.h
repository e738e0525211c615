// What a Triton request asks: r1v_export/deploy/triton/models/preprocess.py.
#pragma once

#include "runner/runner.h"
#include "triton/request_inputs.h"

namespace r1v::triton {

// The conversation of a request, its images read. Throws kInput: it cannot be used.
Request read_question(const RequestInputs& inputs, const Runner& runner);

}  // namespace r1v::triton
