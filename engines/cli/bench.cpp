#include "cli/bench.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>

#include "cli/options.h"

namespace r1v::cli {
namespace {

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

r1v_answer measure(api::Engine& engine, const std::vector<api::Turn>& turns, const api::RequestOptions& options) {
  api::Request request = value_of(engine.start(turns, options));
  while (!value_of(request.next()).finished) {
  }
  return value_of(request.measured());
}

}  // namespace

void bench(const BenchArguments& arguments) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point start = Clock::now();
  api::Engine engine = open(arguments.engine);
  const double open_ms = std::chrono::duration<double, std::milli>(Clock::now() - start).count();
  api::RequestOptions options;
  r1v_sampling sampling;
  if (const r1v_status status = r1v_sampling_init_greedy(engine.handle(), &sampling, sizeof sampling)) {
    throw Failure{api::last_error(status)};
  }
  sampling.max_new_tokens = arguments.tokens;
  options.sampling = sampling;
  std::vector<api::Turn> turns = {{"user", arguments.question, {}}};
  if (!arguments.image.empty()) turns[0].images.push_back(image_named(arguments.image));
  measure(engine, turns, options);
  std::vector<r1v_answer> answers;
  for (int i = 0; i < arguments.runs; ++i) answers.push_back(measure(engine, turns, options));

  const auto of = [&](double r1v_answer::*stage) {
    std::vector<double> values;
    for (const r1v_answer& each : answers) values.push_back(each.*stage);
    return median(values);
  };
  const std::pair<const char*, double r1v_answer::*> stages[] = {
      {"preprocess", &r1v_answer::preprocess_ms}, {"vision", &r1v_answer::vision_ms},
      {"projector", &r1v_answer::projector_ms},   {"embed", &r1v_answer::embed_ms},
      {"prefill", &r1v_answer::prefill_ms},       {"decode", &r1v_answer::decode_ms}};
  double first_token_ms = 0;
  std::printf("%-12s %10s\n", "stage", "ms");
  for (const auto& [name, stage] : stages) {
    std::printf("%-12s %10.2f\n", name, of(stage));
    if (stage != &r1v_answer::decode_ms) first_token_ms += of(stage);
  }
  const r1v_answer& answer = answers.front();
  const double steps = static_cast<double>(answer.token_count) - 1, decode_ms = of(&r1v_answer::decode_ms);
  std::printf("\n%s: %lld prompt tokens, %zu new tokens, median of %d runs; opened in %.1f ms\n",
              engine.description().c_str(), static_cast<long long>(answer.prompt_tokens), answer.token_count,
              arguments.runs, open_ms);
  std::printf("first token after %.1f ms, then %.1f tokens/s; peak memory %.1f MB\n", first_token_ms,
              decode_ms > 0 ? steps / decode_ms * 1000 : 0.0, peak_memory_mb());
}

}  // namespace r1v::cli
