// One answer while it is made, as its caller sees it.
#pragma once

#include <optional>

#include "runner/batching/batching_loop.h"

namespace r1v {

// A request of the batching loop. `next` is for one thread at a time, `cancel` for any.
class Generation {
 public:
  // Throws kQueueFull.
  Generation(BatchingLoop& loop, JobPointer job);
  // Gives up what has not ended.
  ~Generation() { cancel(); }
  Generation(const Generation&) = delete;
  Generation& operator=(const Generation&) = delete;

  // Waits for the next token's event, nothing after the last. Throws kInput, kUsage, kGraph, or what else has ended the
  // answer.
  std::optional<AnswerEvent> next() { return job_->next(); }

  // Ends the answer with what it has, before its next token.
  void cancel();

  int64_t prompt_tokens() const { return prompt_tokens_; }
  // Of the whole answer, once its last event was taken.
  const Timings& timings() const { return job_->prompt.timings; }

 private:
  BatchingLoop& loop_;
  const JobPointer job_;
  const int64_t prompt_tokens_;
};

}  // namespace r1v
