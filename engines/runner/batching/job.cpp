#include "runner/batching/job.h"

#include <algorithm>

namespace r1v {

bool is_last(const JobResult& result) {
  const auto* event = std::get_if<AnswerEvent>(&result);
  return event == nullptr || event->answer.has_value();
}

std::optional<AnswerEvent> Job::next() {
  std::unique_lock<std::mutex> lock(mutex_);
  if (took_last_) return std::nullopt;
  changed_.wait(lock, [this] { return !events_.empty() || error_; });
  if (events_.empty()) {
    took_last_ = true;
    std::rethrow_exception(error_);
  }
  AnswerEvent event = std::move(events_.front());
  events_.pop_front();
  took_last_ = event.answer.has_value();
  return event;
}

void Job::push(Result result) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (pushed_last_) return;
    const bool last = is_last(result);
    if (!options.deliver) keep(std::move(result));
    pushed_last_ = last;
  }
  if (options.deliver) return options.deliver(std::move(result));
  changed_.notify_all();
}

void Job::keep(Result result) {
  if (auto* event = std::get_if<AnswerEvent>(&result)) {
    events_.push_back(std::move(*event));
  } else {
    error_ = std::get<std::exception_ptr>(result);
  }
}

std::optional<FinishReason> Job::given_up() const {
  if (cancelled) return FinishReason::kCancelled;
  if (options.deadline && std::chrono::steady_clock::now() >= *options.deadline) return FinishReason::kDeadline;
  return std::nullopt;
}

void JobQueue::add(JobPointer job) {
  const auto client = std::find_if(clients_.begin(), clients_.end(),
                                   [&](const Client& each) { return each.name == job->options.client; });
  if (client == clients_.end()) {
    clients_.push_back({job->options.client, {std::move(job)}});
  } else {
    client->jobs.push_back(std::move(job));
  }
  ++size_;
}

JobPointer JobQueue::pop() {
  Client& client = clients_.front();
  JobPointer job = std::move(client.jobs.front());
  client.jobs.pop_front();
  --size_;
  if (client.jobs.empty()) {
    clients_.pop_front();
  } else {
    clients_.splice(clients_.end(), clients_, clients_.begin());  // behind all other clients
  }
  return job;
}

JobPointer JobQueue::take_given_up() {
  for (auto client = clients_.begin(); client != clients_.end(); ++client) {
    auto& jobs = client->jobs;
    const auto found = std::find_if(jobs.begin(), jobs.end(), [](const JobPointer& job) { return job->given_up(); });
    if (found == jobs.end()) continue;
    JobPointer taken = std::move(*found);
    jobs.erase(found);
    if (jobs.empty()) clients_.erase(client);
    --size_;
    return taken;
  }
  return nullptr;
}

}  // namespace r1v
