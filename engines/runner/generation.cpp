#include "runner/generation.h"

namespace r1v {

Generation::Generation(BatchingLoop& loop, JobPointer job)
    : loop_(loop), job_(std::move(job)), prompt_tokens_(static_cast<int64_t>(job_->prompt.token_ids.size())) {
  loop_.submit(job_);
}

void Generation::cancel() {
  if (job_->cancelled.exchange(true)) return;
  loop_.wake();
}

}  // namespace r1v
