// Wall-clock time of a request by stage, in milliseconds.
#pragma once

#include <chrono>
#include <cstdint>

namespace r1v {

struct Timings {
  double queue_ms = 0;  // waiting for a row, where many requests share one decoder
  double preprocess_ms = 0;
  double vision_ms = 0;
  double projector_ms = 0;
  double embed_ms = 0;
  double prefill_ms = 0;
  double decode_ms = 0;  // all steps after prefill, embedding and choosing the tokens included
  int64_t decode_steps = 0;
};

// Adds the time of its life to a stage.
class Measure {
 public:
  explicit Measure(double* stage_ms) : stage_ms_(stage_ms) {}
  ~Measure() { *stage_ms_ += std::chrono::duration<double, std::milli>(Clock::now() - start_).count(); }
  Measure(const Measure&) = delete;
  Measure& operator=(const Measure&) = delete;

 private:
  using Clock = std::chrono::steady_clock;

  double* stage_ms_;
  Clock::time_point start_ = Clock::now();
};

}  // namespace r1v
