// Requests that a library answers together, whose own loop batches them.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <vector>

#include "backends/generator.h"
#include "runner/batching/batch.h"

namespace r1v {

// A request that the library works on. Its clock starts here: `prefill_ms` is the time to the first token, waiting for
// a place in the library's batch included.
class OpenState : public RequestState {
 public:
  OpenState(AnswerStream* stream, Timings* timings) : stream_(*stream), timings_(*timings) {}

 private:
  friend class GeneratorBatch;
  using Clock = std::chrono::steady_clock;

  // Counts the time since the last tokens.
  void measure();

  AnswerStream& stream_;
  Timings& timings_;
  uint64_t request_ = 0;
  Clock::time_point since_ = Clock::now();
};

class GeneratorBatch : public Batch {
 public:
  // `generator` must outlive the batch. `max_open`: requests that are open at a time.
  GeneratorBatch(Generator& generator, int64_t max_positions, int64_t max_open)
      : generator_(generator), max_positions_(max_positions), max_open_(max_open) {}
  ~GeneratorBatch() override { clear(); }

  RequestState* admit(const EncodedPrompt& prompt, const Sampling& sampling, AnswerStream* stream,
                      Timings* timings) override;
  // Gives each request the tokens that came for it; there may be none, after a moment.
  std::vector<Outcome> step() override;
  void drop(RequestState* state) override;
  void clear() override;

  bool empty() const override { return open_.empty(); }
  // The cache is the library's: nothing of it.
  BatchingStats stats() const override { return counted_; }

 private:
  using States = std::vector<std::unique_ptr<OpenState>>;

  // Adds the events of what came for a request; whether its answer has ended.
  bool take(OpenState* state, const Generated& generated, std::vector<Outcome>* outcomes);

  Generator& generator_;
  const int64_t max_positions_, max_open_;
  States open_;
  BatchingStats counted_;
};

}  // namespace r1v
