// A request on its way through the batching loop, and the queue of those that wait.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "image/pixels.h"
#include "runner/batching/batch.h"
#include "sampling/sampling.h"

namespace r1v {

// What decoding begins with.
struct Prompt {
  std::vector<int64_t> token_ids;  // an image token for each row of an image
  std::vector<Pixels> images;
  int64_t image_token_id;
  Timings timings;
};

// An event of an answer, or what ended it instead.
using JobResult = std::variant<AnswerEvent, std::exception_ptr>;

// Whether an answer has ended with it.
bool is_last(const JobResult& result);

// What a request is asked to be.
struct JobOptions {
  std::string client;                                             // waiting clients take turns
  std::optional<std::chrono::steady_clock::time_point> deadline;  // the answer ends then with what it has
  // Takes the events as they come, on threads of the loop, instead of `next`. It neither waits nor throws.
  std::function<void(JobResult)> deliver = nullptr;
};

// The loop's threads fill it, the caller's takes its events.
class Job {
 public:
  using Result = JobResult;

  Job(Prompt prompt, const Sampling& sampling, AnswerStream stream, JobOptions options)
      : prompt(std::move(prompt)), sampling(sampling), stream(std::move(stream)), options(std::move(options)) {}

  // Waits for the next event; nothing after the last. Throws what ended the answer instead of an event.
  std::optional<AnswerEvent> next();
  // Hands over an event or an error; the last of them only once. An error takes no memory.
  void push(Result result);

  // Why the answer is to end although nothing has ended it, if it is.
  std::optional<FinishReason> given_up() const;

  // Of the loop's threads, until the last event.
  Prompt prompt;
  const Sampling sampling;
  AnswerStream stream;
  const JobOptions options;
  EncodedPrompt encoded{};
  RequestState* state = nullptr;  // its answer in the batch
  bool ended = false;             // its last event was given
  std::chrono::steady_clock::time_point submitted = std::chrono::steady_clock::now();

  std::atomic<bool> cancelled{false};

 private:
  void keep(Result result);

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<AnswerEvent> events_;
  std::exception_ptr error_;  // after the events
  bool pushed_last_ = false, took_last_ = false;
};

using JobPointer = std::shared_ptr<Job>;

// Jobs that wait, by client: clients take turns, and each client's jobs come in their order.
class JobQueue {
 public:
  void add(JobPointer job);
  // The first job of the client whose turn it is; there is one.
  JobPointer pop();
  // Takes out a job that is given up; null if there is none.
  JobPointer take_given_up();
  size_t size() const { return size_; }

 private:
  struct Client {
    std::string name;
    std::deque<JobPointer> jobs;
  };

  std::list<Client> clients_;  // the next one's turn first
  size_t size_ = 0;
};

}  // namespace r1v
