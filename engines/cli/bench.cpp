#include "cli/bench.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>

#include "cli/options.h"

namespace r1v::cli {
namespace {

using Clock = std::chrono::steady_clock;

double milliseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

// The most memory that this process had resident. (ru_maxrss would be at least what the process that started it had.)
double peak_memory_mb() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind("VmHWM:", 0) == 0) return std::stod(line.substr(6)) * 1024 / 1e6;
  }
  return 0;
}

// What is counted of an answer (its texts are gone), and when its first and last tokens came, in ms since the request.
struct Run {
  r1v_answer answer;
  double first_token_ms = 0, last_token_ms = 0;
};

Run measure(api::Engine& engine, const std::vector<api::Turn>& turns, const api::RequestOptions& options) {
  Run run;
  const Clock::time_point start = Clock::now();
  api::Request request = value_of(engine.start(turns, options));
  for (bool first = true, finished = false; !finished; first = false) {
    finished = value_of(request.next()).finished;
    run.last_token_ms = milliseconds_since(start);
    if (first) run.first_token_ms = run.last_token_ms;
  }
  run.answer = value_of(request.measured());
  return run;
}

// One row and no kept images: a request of its own then leaves nothing of the question that the next run could start
// behind.
api::Engine open_without_reuse(const EngineArguments& arguments) {
  return open(arguments, [](r1v_engine_options* options) {
    options->max_rows = 1;
    options->image_cache_bytes = 0;
    options->keep_prefixes = 0;
  });
}

void forget_question(api::Engine& engine, api::RequestOptions options) {
  options.raw = true;
  options.sampling->max_new_tokens = 1;
  measure(engine, {{"user", ".", {}}}, options);
}

void require_nothing_reused(const api::Engine& engine) {
  r1v_stats stats;
  r1v_stats_init(&stats, sizeof stats);
  if (const r1v_status status = r1v_engine_stats(engine.handle(), &stats)) throw Failure{api::last_error(status)};
  if (stats.reused_tokens == 0 && stats.image_hits == 0) return;
  throw Failure{{R1V_INTERNAL_ERROR, "A run took over what an earlier one had computed, so it cannot be timed."}};
}

}  // namespace

void bench(const BenchArguments& arguments) {
  const Clock::time_point start = Clock::now();
  api::Engine engine = open_without_reuse(arguments.engine);
  const double open_ms = milliseconds_since(start);
  api::RequestOptions options;
  r1v_sampling sampling;
  if (const r1v_status status = r1v_sampling_init_greedy(engine.handle(), &sampling, sizeof sampling)) {
    throw Failure{api::last_error(status)};
  }
  sampling.max_new_tokens = arguments.tokens;
  sampling.ignore_eos = 1;  // as many tokens whatever the model would like
  options.sampling = sampling;
  std::vector<api::Turn> turns = {{"user", arguments.question, {}}};
  if (!arguments.image.empty()) turns[0].images.push_back(image_named(arguments.image));
  measure(engine, turns, options);
  std::vector<Run> runs;
  for (int i = 0; i < arguments.runs; ++i) {
    forget_question(engine, options);
    runs.push_back(measure(engine, turns, options));
  }
  require_nothing_reused(engine);

  const auto median_of = [&](const auto& quantity) {
    std::vector<double> values;
    for (const Run& run : runs) values.push_back(quantity(run));
    return median(values);
  };
  const std::pair<const char*, double r1v_answer::*> stages[] = {
      {"preprocess", &r1v_answer::preprocess_ms}, {"vision", &r1v_answer::vision_ms},
      {"projector", &r1v_answer::projector_ms},   {"embed", &r1v_answer::embed_ms},
      {"prefill", &r1v_answer::prefill_ms},       {"decode", &r1v_answer::decode_ms}};
  std::printf("%-12s %10s\n", "stage", "ms");
  for (const auto& [name, stage] : stages) {
    std::printf("%-12s %10.2f\n", name, median_of([&, stage = stage](const Run& run) { return run.answer.*stage; }));
  }
  const r1v_answer& answer = runs.front().answer;
  const double steps = static_cast<double>(answer.token_count) - 1;
  const double decode_ms = median_of([](const Run& run) { return run.last_token_ms - run.first_token_ms; });
  std::printf("\n%s: %lld prompt tokens, %zu new tokens, median of %d runs; opened in %.1f ms\n",
              engine.description().c_str(), static_cast<long long>(answer.prompt_tokens), answer.token_count,
              arguments.runs, open_ms);
  std::printf("first token after %.1f ms, then %.2f tokens/s; peak memory %.1f MB\n",
              median_of([](const Run& run) { return run.first_token_ms; }),
              decode_ms > 0 ? steps / decode_ms * 1000 : 0.0, peak_memory_mb());
}

}  // namespace r1v::cli
