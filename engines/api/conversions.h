// What the C API takes and gives, as the runner has it.
#pragma once

#include "r1v/r1v.h"
#include "runner/runner.h"

namespace r1v::capi {

r1v_engine_options default_engine_options();
r1v_request_options default_request_options();

// All throw kUsage: a struct is not initialized, or a pointer is missing.
RunnerOptions runner_options(const r1v_engine_options* options);
r1v_sampling c_sampling(const Sampling& sampling);
Sampling cpp_sampling(const r1v_sampling& sampling);

// Throws kUsage.
JobOptions job_options(const r1v_request_options& options);

// Reads and decodes the images, too. Throws kInput.
Request request_of(const Runner& runner, const r1v_request_options& options);

}  // namespace r1v::capi
