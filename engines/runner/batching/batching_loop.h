// Many requests at a time over one model. Two threads: one encodes images, a few requests ahead; the other decodes.
//
// Every answer depends on its own prompt, sampling and seed only. What is wrong with a request comes in the place of
// its events and never touches another request. Where there is no memory, all requests that are being prepared, or all
// that are being decoded, end with that error; then the loop goes on.
#pragma once

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "backends/generator.h"
#include "runner/batching/batch.h"
#include "runner/batching/job.h"
#include "runner/batching/options.h"
#include "runner/image_encoder.h"

namespace r1v {

class BatchingLoop {
 public:
  // Over an engine, whose decoder is stepped here, or over a library that decodes by itself. All must outlive the loop.
  // Throws kUsage: a limit is below 1.
  BatchingLoop(Engine& engine, ImageEncoder& encoder, int64_t max_positions, const BatchingOptions& options);
  BatchingLoop(Generator& generator, ImageEncoder& encoder, int64_t max_positions, const BatchingOptions& options);
  // Ends unfinished answers as cancelled.
  ~BatchingLoop();

  // Queues a request; any thread may, and it does not block. Throws kQueueFull: as many requests wait as may.
  void submit(JobPointer job);
  // Has the loop see that a job was cancelled.
  void wake();

  BatchingStats stats() const;

 private:
  BatchingLoop(std::unique_ptr<Batch> batch, ImageEncoder& encoder, const BatchingOptions& options);
  void close();

  // A request while its images are being encoded.
  struct OpenPrompt {
    JobPointer job;
    std::vector<ImageJobPointer> images;
  };

  // On the thread that encodes.
  void prepare();
  void prepare_next(std::vector<OpenPrompt>* opened);
  bool wait_to_prepare();
  JobPointer next_to_prepare();
  bool open(OpenPrompt* prompt);
  bool pass_on(const OpenPrompt& prompt);

  // On the thread that decodes.
  void decode();
  bool wait_to_decode();
  void end_given_up();
  void admit();
  void step();
  void fail_running(const std::exception_ptr& error);
  JobPointer next_given_up();
  JobPointer next_unfinished();

  // On either.
  void end(const JobPointer& job, FinishReason reason);
  void push(const JobPointer& job, Job::Result result);
  void fail(std::vector<JobPointer>* jobs, const std::exception_ptr& error);

  // Whether a further request may be prepared: prepared ones take the memory of their images.
  bool has_place() const { return static_cast<int64_t>(preparing_.size() + ready_.size()) < options_.max_rows; }
  int64_t queued() const { return static_cast<int64_t>(queue_.size() + preparing_.size() + ready_.size()); }

  ImageEncoder& encoder_;
  const BatchingOptions options_;

  mutable std::mutex mutex_;  // of all below, but for the batch and the states of running jobs: the decoding thread's
  std::condition_variable changed_;
  JobQueue queue_;                     // nothing was done for them yet
  std::vector<JobPointer> preparing_;  // their images are being encoded
  std::deque<JobPointer> ready_;
  std::vector<JobPointer> running_;
  bool closing_ = false;
  BatchingStats batch_stats_;  // after the batch's latest step
  int64_t refused_ = 0, finished_ = 0, failed_ = 0;

  const std::unique_ptr<Batch> batch_;
  std::thread preparer_, decoder_;  // last: they use all of the above
};

}  // namespace r1v
