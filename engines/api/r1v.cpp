// The C API: every call catches what it may throw, and keeps its message for the thread.
#include "r1v/r1v.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>

#include "api/conversions.h"
#include "api/structs.h"
#include "r1v_version.h"

using namespace r1v;

struct r1v_engine {
  explicit r1v_engine(const char* bundle, const r1v_engine_options* options)
      : runner(bundle, capi::runner_options(options)), description(runner.description()), note(runner.note()) {}

  Runner runner;
  const std::string description, note;
};

struct r1v_request {
  std::unique_ptr<Generation> generation;
  AnswerPiece piece;             // of the latest event
  capi::LogprobArrays logprobs;  // of its token
  std::optional<Answer> answer;  // after the last
  capi::LogprobArrays all_logprobs;
};

namespace {

// Fixed, so that it can be written where there is no memory.
thread_local char last_message[4096] = "";

// Cut at a whole character where it is too long.
void keep_message(const char* message) {
  size_t size = std::min(std::strlen(message), sizeof last_message - 1);
  if (message[size] != '\0') {
    while (size > 0 && (static_cast<unsigned char>(message[size]) & 0xc0) == 0x80) --size;
  }
  std::memcpy(last_message, message, size);
  last_message[size] = '\0';
}

static_assert(static_cast<int>(Code::kUsage) == R1V_USAGE_ERROR &&
              static_cast<int>(Code::kQueueFull) == R1V_QUEUE_FULL_ERROR);

template <typename Call>
r1v_status guarded(const Call& call) noexcept {
  try {
    keep_message("");
    call();
    return R1V_OK;
  } catch (const Error& error) {
    keep_message(error.what());
    return static_cast<r1v_status>(error.code());
  } catch (const std::bad_alloc&) {
    keep_message("There is not enough memory.");
    return R1V_MEMORY_ERROR;
  } catch (const std::length_error&) {
    keep_message("There is not enough memory.");
    return R1V_MEMORY_ERROR;
  } catch (const std::exception& error) {
    keep_message(error.what());
  } catch (...) {
    keep_message("An error without a name.");
  }
  return R1V_INTERNAL_ERROR;
}

template <typename Pointer>
Pointer required(Pointer pointer, const char* name) {
  if (pointer != nullptr) return pointer;
  throw Error(Code::kUsage, "A pointer is missing.", {name, "", "NULL", ""});
}

void init_sampling(const r1v_engine* engine, r1v_sampling* sampling, size_t struct_size, bool greedy) {
  capi::require_struct(sampling != nullptr, struct_size, "sampling");
  Sampling chosen = required(engine, "engine")->runner.default_sampling();
  if (greedy) {
    Sampling likeliest;
    likeliest.max_new_tokens = chosen.max_new_tokens;
    chosen = likeliest;
  }
  capi::write_struct(capi::c_sampling(chosen), sampling, struct_size);
}

template <typename Struct>
void init(Struct* given, size_t struct_size, const Struct& defaults) noexcept {
  if (given != nullptr && struct_size >= sizeof(size_t)) capi::write_struct(defaults, given, struct_size);
}

r1v_answer c_answer(const r1v_request& request) {
  const Answer& answer = *request.answer;
  const Timings& timings = request.generation->timings();
  r1v_answer whole{};
  whole.reasoning = answer.reasoning.c_str();
  whole.text = answer.text.c_str();
  whole.reasoning_complete = answer.reasoning_complete;
  whole.finish_reason = static_cast<r1v_finish_reason>(answer.finish_reason);
  whole.token_ids = answer.token_ids.data();
  whole.token_count = answer.token_ids.size();
  whole.reasoning_tokens = answer.reasoning_tokens;
  whole.prompt_tokens = request.generation->prompt_tokens();
  whole.preprocess_ms = timings.preprocess_ms;
  whole.vision_ms = timings.vision_ms;
  whole.projector_ms = timings.projector_ms;
  whole.embed_ms = timings.embed_ms;
  whole.prefill_ms = timings.prefill_ms;
  whole.decode_ms = timings.decode_ms;
  whole.queue_ms = timings.queue_ms;
  whole.decode_steps = timings.decode_steps;
  whole.reused_tokens = answer.reused_tokens;
  whole.logprobs = request.all_logprobs.chosen();
  whole.top_ids = request.all_logprobs.top_ids();
  whole.top_logprobs = request.all_logprobs.top();
  whole.top_count = request.all_logprobs.top_count();
  return whole;
}

}  // namespace

const char* r1v_version(void) { return kVersion; }

const char* r1v_error_message(void) { return last_message; }

const char* r1v_status_name(r1v_status status) {
  return status == R1V_OK ? "ok" : code_name(static_cast<Code>(status));
}

void r1v_engine_options_init(r1v_engine_options* options, size_t struct_size) {
  init(options, struct_size, capi::default_engine_options());
}

r1v_status r1v_engine_open(const char* bundle, const r1v_engine_options* options, r1v_engine** engine) {
  return guarded([&] {
    *required(engine, "engine") = nullptr;
    *engine = new r1v_engine(required(bundle, "bundle"), options);
  });
}

void r1v_engine_free(r1v_engine* engine) { delete engine; }

const char* r1v_engine_description(const r1v_engine* engine) {
  return engine == nullptr ? "" : engine->description.c_str();
}

const char* r1v_engine_note(const r1v_engine* engine) { return engine == nullptr ? "" : engine->note.c_str(); }

int64_t r1v_engine_max_positions(const r1v_engine* engine) {
  return engine == nullptr ? 0 : engine->runner.max_positions();
}

void r1v_stats_init(r1v_stats* stats, size_t struct_size) { init(stats, struct_size, r1v_stats{}); }

r1v_status r1v_engine_stats(const r1v_engine* engine, r1v_stats* stats) {
  return guarded([&] {
    capi::require_struct(true, required(stats, "stats")->struct_size, "stats");
    const BatchingStats now = required(engine, "engine")->runner.stats();
    r1v_stats whole{};
    whole.queued = now.queued;
    whole.running = now.running;
    whole.rows = now.rows;
    whole.cache_bytes = now.cache_bytes;
    whole.refused = now.refused;
    whole.finished = now.finished;
    whole.failed = now.failed;
    whole.prompt_tokens = now.prompt_tokens;
    whole.reused_tokens = now.reused_tokens;
    whole.generated_tokens = now.generated_tokens;
    whole.decode_steps = now.decode_steps;
    whole.decoded_rows = now.decoded_rows;
    whole.image_hits = now.image_hits;
    whole.image_misses = now.image_misses;
    whole.prefix_hits = now.prefix_hits;
    whole.prefix_misses = now.prefix_misses;
    whole.preempted = now.preempted;
    whole.vision_runs = now.vision_runs;
    whole.vision_tiles = now.vision_tiles;
    whole.kept_rows = now.kept_rows;
    whole.image_cache_bytes = now.image_cache_bytes;
    capi::write_struct(whole, stats, stats->struct_size);
  });
}

r1v_status r1v_verify(const char* bundle, int64_t* files, int64_t* bytes) {
  return guarded([&] {
    const Bundle opened = open_bundle(required(bundle, "bundle"), true);
    int64_t count = 0, size = 0;
    for (const auto& [path, entry] : opened.manifest.files) {
      ++count;
      size += static_cast<int64_t>(entry.size);
    }
    if (files != nullptr) *files = count;
    if (bytes != nullptr) *bytes = size;
  });
}

void r1v_image_init(r1v_image* image, size_t struct_size) { init(image, struct_size, r1v_image{}); }

void r1v_turn_init(r1v_turn* turn, size_t struct_size) { init(turn, struct_size, r1v_turn{}); }

r1v_status r1v_sampling_init(const r1v_engine* engine, r1v_sampling* sampling, size_t struct_size) {
  return guarded([&] { init_sampling(engine, sampling, struct_size, false); });
}

r1v_status r1v_sampling_init_greedy(const r1v_engine* engine, r1v_sampling* sampling, size_t struct_size) {
  return guarded([&] { init_sampling(engine, sampling, struct_size, true); });
}

void r1v_request_options_init(r1v_request_options* options, size_t struct_size) {
  init(options, struct_size, capi::default_request_options());
}

r1v_status r1v_request_start(r1v_engine* engine, const r1v_request_options* options, r1v_request** request) {
  return guarded([&] {
    *required(request, "request") = nullptr;
    Runner& runner = required(engine, "engine")->runner;
    const r1v_request_options whole = capi::read_struct(options, capi::default_request_options(), "request_options");
    const Sampling sampling =
        whole.sampling == nullptr ? runner.default_sampling() : capi::cpp_sampling(*whole.sampling);
    auto started = std::make_unique<r1v_request>();
    started->generation = runner.start(capi::request_of(runner, whole), sampling, capi::job_options(whole));
    *request = started.release();
  });
}

void r1v_event_init(r1v_event* event, size_t struct_size) { init(event, struct_size, r1v_event{}); }

r1v_status r1v_request_next(r1v_request* request, r1v_event* event) {
  return guarded([&] {
    capi::require_struct(true, required(event, "event")->struct_size, "event");
    std::optional<AnswerEvent> next = required(request, "request")->generation->next();
    if (!next)
      throw Error(Code::kUsage, "The answer has ended.", {"r1v_request_next", "", "", "start another request"});
    request->piece = std::move(next->piece);
    request->logprobs = next->logprobs ? capi::LogprobArrays({*next->logprobs}) : capi::LogprobArrays();
    if (next->answer) {
      request->all_logprobs = capi::LogprobArrays(next->answer->logprobs);
      request->answer = std::move(next->answer);
    }
    const AnswerPiece& piece = request->piece;
    r1v_event whole{};
    whole.token_id = next->token_id.value_or(-1);
    whole.reasoning = piece.reasoning.c_str();
    whole.reasoning_size = piece.reasoning.size();
    whole.text = piece.answer.c_str();
    whole.text_size = piece.answer.size();
    whole.finished = request->answer.has_value();
    whole.logprob = request->logprobs.chosen();
    whole.top_ids = request->logprobs.top_ids();
    whole.top_logprobs = request->logprobs.top();
    whole.top_count = request->logprobs.top_count();
    capi::write_struct(whole, event, event->struct_size);
  });
}

void r1v_request_cancel(r1v_request* request) {
  if (request != nullptr) request->generation->cancel();
}

void r1v_answer_init(r1v_answer* answer, size_t struct_size) { init(answer, struct_size, r1v_answer{}); }

r1v_status r1v_request_answer(r1v_request* request, r1v_answer* answer) {
  return guarded([&] {
    capi::require_struct(true, required(answer, "answer")->struct_size, "answer");
    if (!required(request, "request")->answer) {
      throw Error(Code::kUsage, "The answer has not ended.",
                  {"r1v_request_answer", "", "", "call r1v_request_next until its event is finished"});
    }
    capi::write_struct(c_answer(*request), answer, answer->struct_size);
  });
}

void r1v_request_free(r1v_request* request) { delete request; }
