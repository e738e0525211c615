#include "runner/batching/batching_loop.h"

#include <algorithm>
#include <set>
#include <string>
#include <tuple>

#include "base/error.h"
#include "runner/batching/engine_batch.h"
#include "runner/batching/generator_batch.h"

namespace r1v {
namespace {

using Clock = std::chrono::steady_clock;

double ms_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

const BatchingOptions& checked(const BatchingOptions& options) {
  for (const auto& [name, value, least] : {std::tuple<const char*, int64_t, int64_t>{"max_rows", options.max_rows, 1},
                                           {"max_queued", options.max_queued, 1},
                                           {"cache_bytes", options.cache_bytes, 1},
                                           {"image_cache_bytes", options.image_cache_bytes, 0},
                                           {"prefill_chunk", options.prefill_chunk, 1}}) {
    if (value < least) {
      throw Error(Code::kUsage, "A limit is out of range.",
                  {name, "at least " + std::to_string(least), std::to_string(value), ""});
    }
  }
  return options;
}

// A prompt whose images are encoded, and what they took.
void finish_prompt(Prompt* prompt, const std::vector<ImageJobPointer>& images, EncodedPrompt* encoded) {
  *encoded = {std::move(prompt->token_ids), {}, prompt->image_token_id};
  for (const ImageJobPointer& image : images) encoded->images.push_back(image->image);
  for (const ImageJobPointer& image : std::set<ImageJobPointer>(images.begin(), images.end())) {
    prompt->timings.preprocess_ms += image->timings.preprocess_ms;
    prompt->timings.vision_ms += image->timings.vision_ms;
    prompt->timings.projector_ms += image->timings.projector_ms;
  }
}

}  // namespace

BatchingLoop::BatchingLoop(Engine& engine, ImageEncoder& encoder, int64_t max_positions, const BatchingOptions& options)
    : BatchingLoop(std::make_unique<EngineBatch>(engine, max_positions, checked(options)), encoder, options) {}

BatchingLoop::BatchingLoop(Generator& generator, ImageEncoder& encoder, int64_t max_positions,
                           const BatchingOptions& options)
    : BatchingLoop(std::make_unique<GeneratorBatch>(generator, max_positions, checked(options).max_rows), encoder,
                   options) {}

BatchingLoop::BatchingLoop(std::unique_ptr<Batch> batch, ImageEncoder& encoder, const BatchingOptions& options)
    : encoder_(encoder), options_(options), batch_(std::move(batch)) {
  preparer_ = std::thread([this] { prepare(); });
  try {
    decoder_ = std::thread([this] { decode(); });
  } catch (...) {
    close();
    throw;
  }
}

BatchingLoop::~BatchingLoop() { close(); }

void BatchingLoop::close() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    closing_ = true;
  }
  changed_.notify_all();
  preparer_.join();
  if (decoder_.joinable()) decoder_.join();
}

void BatchingLoop::submit(JobPointer job) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (queued() + static_cast<int64_t>(running_.size()) >= options_.max_rows + options_.max_queued) {
      ++refused_;
      throw Error(Code::kQueueFull, "Too many requests are waiting.",
                  {"request",
                   "at most " + std::to_string(options_.max_queued) + ", and " + std::to_string(options_.max_rows) +
                       " that run",
                   "", "try again later"});
    }
    queue_.add(std::move(job));
  }
  changed_.notify_all();
}

void BatchingLoop::wake() {
  { const std::lock_guard<std::mutex> lock(mutex_); }  // so that no thread is between looking and waiting
  changed_.notify_all();
}

BatchingStats BatchingLoop::stats() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  BatchingStats stats = batch_stats_;
  stats.queued = queued();
  stats.ready = static_cast<int64_t>(ready_.size());
  stats.refused = refused_;
  stats.finished = finished_;
  stats.failed = failed_;
  stats.running = static_cast<int64_t>(running_.size());
  stats.image_hits = encoder_.hits();
  stats.image_misses = encoder_.misses();
  stats.image_cache_bytes = encoder_.cache().bytes();
  stats.vision_runs = encoder_.runs();
  stats.vision_tiles = encoder_.tiles();
  return stats;
}

void BatchingLoop::prepare() {
  std::vector<OpenPrompt> opened;
  while (wait_to_prepare()) {
    try {
      prepare_next(&opened);
    } catch (...) {  // Memory that there is not.
      opened.clear();
      encoder_.clear();
      fail(&preparing_, std::current_exception());
    }
  }
}

void BatchingLoop::prepare_next(std::vector<OpenPrompt>* opened) {
  // One at least, so that a request without new images does not wait for the many of another; and as many as fill a run
  // of the vision graph.
  do {
    OpenPrompt next{next_to_prepare(), {}};
    if (next.job == nullptr) break;
    if (open(&next)) opened->push_back(std::move(next));
  } while (encoder_.waiting() < kTilesPerRun);
  encoder_.run_batch();
  opened->erase(std::remove_if(opened->begin(), opened->end(), [&](const OpenPrompt& each) { return pass_on(each); }),
                opened->end());
}

// Waits for something to do; false once the loop ends.
bool BatchingLoop::wait_to_prepare() {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [this] { return closing_ || encoder_.waiting() > 0 || (queue_.size() > 0 && has_place()); });
  return !closing_;
}

// A job that may be prepared; null if there is none.
JobPointer BatchingLoop::next_to_prepare() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (queue_.size() == 0 || !has_place()) return nullptr;
  preparing_.reserve(preparing_.size() + 1);  // before a job is in neither list
  preparing_.push_back(queue_.pop());
  return preparing_.back();
}

// Begins to encode a job's images; false where they cannot be, which ends it.
bool BatchingLoop::open(OpenPrompt* prompt) {
  try {
    for (Pixels& image : prompt->job->prompt.images) prompt->images.push_back(encoder_.open(std::move(image)));
    return true;
  } catch (...) {
    encoder_.abandon(prompt->images);
    push(prompt->job, std::current_exception());
    return false;
  }
}

// Gives a prepared request to the other thread; whether this one has nothing more to do for it.
bool BatchingLoop::pass_on(const OpenPrompt& prompt) {
  const auto& [job, images] = prompt;
  const auto failed = std::find_if(images.begin(), images.end(), [](const auto& image) { return image->error; });
  const bool done = failed != images.end() ||
                    std::all_of(images.begin(), images.end(), [](const auto& image) { return image->done(); });
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!done && !job->ended) return false;
    if (!job->ended && failed == images.end()) {
      finish_prompt(&job->prompt, images, &job->encoded);
      ready_.push_back(job);
      preparing_.erase(std::find(preparing_.begin(), preparing_.end(), job));
    }
  }
  encoder_.abandon(images);
  if (failed != images.end()) push(job, (*failed)->error);
  changed_.notify_all();
  return true;
}

void BatchingLoop::decode() {
  while (wait_to_decode()) {
    try {
      end_given_up();
      admit();
      step();
    } catch (...) {  // Memory that there is not.
      fail_running(std::current_exception());
    }
  }
  while (const JobPointer job = next_unfinished()) end(job, FinishReason::kCancelled);
  batch_->clear();
}

// A job that has not ended; null if there is none.
JobPointer BatchingLoop::next_unfinished() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (queue_.size() > 0) return queue_.pop();
  if (!preparing_.empty()) return preparing_.front();
  if (!ready_.empty()) return ready_.front();
  return running_.empty() ? nullptr : running_.front();
}

// Waits for something to do; false once the loop ends.
bool BatchingLoop::wait_to_decode() {
  std::unique_lock<std::mutex> lock(mutex_);
  const auto has_work = [this] { return closing_ || !ready_.empty() || !running_.empty(); };
  // Jobs that wait without a row are looked at now and then, for their deadlines and cancellations.
  while (!has_work()) {
    if (queued() == 0) {
      changed_.wait(lock);
    } else if (changed_.wait_for(lock, std::chrono::milliseconds(20)) == std::cv_status::timeout) {
      break;
    }
  }
  return !closing_;
}

void BatchingLoop::end_given_up() {
  while (const JobPointer job = next_given_up()) end(job, *job->given_up());
}

// A job that is given up and has not ended; null if there is none.
JobPointer BatchingLoop::next_given_up() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (JobPointer job = queue_.take_given_up()) return job;
  const auto first_of = [](const auto& jobs) {
    const auto found = std::find_if(jobs.begin(), jobs.end(), [](const JobPointer& job) { return job->given_up(); });
    return found == jobs.end() ? nullptr : *found;
  };
  if (JobPointer job = first_of(preparing_)) return job;
  if (JobPointer job = first_of(ready_)) return job;
  return first_of(running_);
}

// Gives rows to the jobs that are ready, in their order, as far as there are.
void BatchingLoop::admit() {
  for (;;) {
    JobPointer job;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (ready_.empty()) return;
      job = ready_.front();
    }
    try {
      job->state = batch_->admit(job->encoded, job->sampling, &job->stream, &job->prompt.timings);
      if (job->state == nullptr) return;
      const std::lock_guard<std::mutex> lock(mutex_);
      running_.push_back(job);
      ready_.pop_front();
    } catch (const Error&) {
      push(job, std::current_exception());
      continue;
    } catch (...) {  // Memory that there is not: the cache may be half changed.
      push(job, std::current_exception());
      fail_running(std::current_exception());
      continue;
    }
    Timings& timings = job->prompt.timings;
    const double worked_ms = timings.preprocess_ms + timings.vision_ms + timings.projector_ms;
    timings.queue_ms = std::max(0.0, ms_since(job->submitted) - worked_ms);
    job->encoded = {};
    changed_.notify_all();
  }
}

void BatchingLoop::step() {
  if (batch_->empty()) return;
  std::vector<Batch::Outcome> outcomes;
  try {
    outcomes = batch_->step();
  } catch (...) {
    fail_running(std::current_exception());
    return;
  }
  std::vector<JobPointer> running;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    running = running_;
    batch_stats_ = batch_->stats();
  }
  for (Batch::Outcome& outcome : outcomes) {
    const auto job = std::find_if(running.begin(), running.end(),
                                  [&](const JobPointer& each) { return each->state == outcome.state; });
    if (job != running.end()) push(*job, std::move(outcome.result));
  }
}

// Ends all running answers with an error, and begins with a new cache.
void BatchingLoop::fail_running(const std::exception_ptr& error) {
  fail(&running_, error);
  batch_->clear();
}

// Ends all jobs of a list with an error; takes no memory.
void BatchingLoop::fail(std::vector<JobPointer>* jobs, const std::exception_ptr& error) {
  for (;;) {
    JobPointer job;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (jobs->empty()) return;
      job = jobs->front();
    }
    push(job, error);
  }
}

void BatchingLoop::end(const JobPointer& job, FinishReason reason) {
  if (job->state != nullptr) batch_->drop(job->state);
  try {
    push(job, job->stream.push(std::nullopt, reason));
  } catch (...) {  // Memory that there is not.
    push(job, std::current_exception());
  }
}

// Gives a result to a job's caller; its last one only once, and then the job is gone. Throws where there is no memory
// for an event that is not the last.
void BatchingLoop::push(const JobPointer& job, Job::Result result) {
  const auto* event = std::get_if<AnswerEvent>(&result);
  const bool is_last = event == nullptr || event->answer;
  if (is_last) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (job->ended) return;
      job->ended = true;
      for (std::vector<JobPointer>* jobs : {&preparing_, &running_}) {
        jobs->erase(std::remove(jobs->begin(), jobs->end(), job), jobs->end());
      }
      ready_.erase(std::remove(ready_.begin(), ready_.end(), job), ready_.end());
      ++(event == nullptr ? failed_ : finished_);
      job->state = nullptr;
    }
    changed_.notify_all();  // there may be a place now
  }
  try {
    job->push(std::move(result));
  } catch (...) {
    if (!is_last) throw;
    job->push(std::current_exception());
  }
}

}  // namespace r1v
