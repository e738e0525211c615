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

// Log probabilities of tokens that follow each other, with as many likeliest ones each, in the arrays of the C API.
class LogprobArrays {
 public:
  LogprobArrays() = default;
  explicit LogprobArrays(const std::vector<TokenLogprobs>& tokens);

  // NULL where there are none.
  const double* chosen() const { return chosen_.empty() ? nullptr : chosen_.data(); }
  const int64_t* top_ids() const { return top_ids_.empty() ? nullptr : top_ids_.data(); }
  const double* top() const { return top_.empty() ? nullptr : top_.data(); }
  size_t top_count() const { return chosen_.empty() ? 0 : top_.size() / chosen_.size(); }

 private:
  std::vector<double> chosen_, top_;
  std::vector<int64_t> top_ids_;
};

// Throws kUsage.
JobOptions job_options(const r1v_request_options& options);

// Reads and decodes the images, too. Throws kInput.
Request request_of(const Runner& runner, const r1v_request_options& options);

}  // namespace r1v::capi
