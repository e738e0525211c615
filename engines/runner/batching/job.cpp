#include "runner/batching/job.h"

#include <algorithm>

namespace r1v {
namespace {

bool is_last(const Job::Result& result) {
  const auto* event = std::get_if<AnswerEvent>(&result);
  return event == nullptr || event->answer.has_value();
}

}  // namespace

std::optional<AnswerEvent> Job::next() {
  std::unique_lock<std::mutex> lock(mutex_);
  if (took_last_) return std::nullopt;
  changed_.wait(lock, [this] { return !results_.empty(); });
  Result result = std::move(results_.front());
  results_.pop_front();
  took_last_ = is_last(result);
  lock.unlock();
  if (const auto* error = std::get_if<std::exception_ptr>(&result)) std::rethrow_exception(*error);
  return std::move(std::get<AnswerEvent>(result));
}

void Job::push(Result result) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (pushed_last_) return;
    pushed_last_ = is_last(result);
    results_.push_back(std::move(result));
  }
  changed_.notify_all();
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

std::vector<JobPointer> JobQueue::take_given_up() {
  std::vector<JobPointer> taken;
  for (auto client = clients_.begin(); client != clients_.end();) {
    auto& jobs = client->jobs;
    const auto first =
        std::stable_partition(jobs.begin(), jobs.end(), [](const JobPointer& job) { return !job->given_up(); });
    taken.insert(taken.end(), first, jobs.end());
    jobs.erase(first, jobs.end());
    client = jobs.empty() ? clients_.erase(client) : std::next(client);
  }
  size_ -= taken.size();
  return taken;
}

}  // namespace r1v
