#include "triton/answer_sender.h"

#include <algorithm>

namespace r1v::triton {
namespace {

// How often the server is asked whether clients are still there: nothing else says so of a request that waits.
constexpr std::chrono::milliseconds kLook{100};
// How long an error waits. Triton 24.10 notes a gRPC request as under way only after it has given it to the backend;
// one that has ended by then stays noted, and the server fails when the stream is cancelled or the model unloaded.
constexpr std::chrono::milliseconds kErrorDelay{100};

// Whether an answer has what may be sent: one that is not streamed, its end.
bool is_ready(const OpenAnswer& answer) {
  return !answer.gathered.empty() && (answer.streams || is_last(answer.gathered.back()));
}

}  // namespace

AnswerSender::AnswerSender(std::function<void()> look) : look_(std::move(look)) {
  thread_ = std::thread([this] { run(); });
}

void AnswerSender::close() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    closing_ = true;
    for (const AnswerPointer& answer : open_) answer->generation->cancel();
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void AnswerSender::add(const AnswerPointer& answer, JobResult result) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    const bool waits = is_ready(*answer);
    answer->gathered.push_back(std::move(result));
    if (waits || !is_ready(*answer) || open_.count(answer) == 0) return;
    waiting_.push_back(answer);
  }
  changed_.notify_all();
}

void AnswerSender::open(const AnswerPointer& answer, std::unique_ptr<Generation> generation) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    answer->generation = std::move(generation);
    open_.insert(answer);
    if (is_ready(*answer)) waiting_.push_back(answer);
  }
  changed_.notify_all();
}

void AnswerSender::refuse(AnswerPointer answer, std::exception_ptr error) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    refused_.push_back({std::move(answer), std::move(error), Clock::now() + kErrorDelay});
  }
  changed_.notify_all();
}

void AnswerSender::run() {
  Clock::time_point next_look = Clock::now() + kLook;
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    if (open_.empty() && refused_.empty()) {
      if (closing_) return;
      changed_.wait(lock);
      continue;
    }
    const Clock::time_point wake = refused_.empty() ? next_look : std::min(next_look, refused_.front().due);
    changed_.wait_until(lock, wake, [this] { return has_due(); });
    if (has_due()) send_next(&lock);
    if (Clock::now() < next_look) continue;
    next_look = Clock::now() + kLook;
    lock.unlock();
    end_cancelled();
    look_();
    lock.lock();
  }
}

bool AnswerSender::has_due() const {
  return !waiting_.empty() || (!refused_.empty() && (closing_ || refused_.front().due <= Clock::now()));
}

void AnswerSender::send_next(std::unique_lock<std::mutex>* lock) {
  if (!waiting_.empty()) {
    const AnswerPointer answer = std::move(waiting_.front());
    waiting_.pop_front();
    const std::vector<JobResult> results = std::exchange(answer->gathered, {});
    lock->unlock();
    send(answer, results);
  } else {
    const Refused refused = std::move(refused_.front());
    refused_.pop_front();
    lock->unlock();
    refused.answer->send_error(refused.error);
    look_();
  }
  lock->lock();
}

void AnswerSender::send(const AnswerPointer& answer, const std::vector<JobResult>& results) {
  const bool sent = answer->send(results, answer->generation->prompt_tokens());
  if (sent && !is_last(results.back())) return;
  std::unique_ptr<Generation> ended;  // an answer that could not be sent is given up with it
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    open_.erase(answer);
    ended = std::move(answer->generation);
  }
  ended.reset();
  look_();
}

void AnswerSender::end_cancelled() {
  std::vector<AnswerPointer> answers;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    answers.assign(open_.begin(), open_.end());
  }
  for (const AnswerPointer& answer : answers) {
    if (answer->is_cancelled()) answer->generation->cancel();
  }
}

}  // namespace r1v::triton
