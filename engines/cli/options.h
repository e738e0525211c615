// Options that the commands share.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>
#include <vector>

#include "r1v/r1v.hpp"

namespace r1v::cli {

// What ends the program: an error's exit code is that of the Python program.
struct Failure {
  api::Error error;
};

[[noreturn]] void fail_usage(const std::string& what);

template <typename T>
T value_of(api::Result<T> result) {
  if (!result) throw Failure{result.error()};
  return std::move(*result);
}

struct EngineArguments {
  std::string bundle, target, device = "cpu", library;
  int gpu = 0, threads = 0;
  bool verify = false;

  void add_to(CLI::App& command);
  api::Engine open() const;
};

struct SamplingArguments {
  bool greedy = false;
  std::optional<int64_t> max_new_tokens, top_k;
  std::optional<double> temperature, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty;
  uint64_t seed = 0;
  std::vector<std::string> stop;
  bool stop_in_reasoning = false;

  void add_to(CLI::App& command);
  // The checkpoint's sampling, and options in its place; says on stderr what is in use. Its stop strings live as long
  // as `stops`.
  r1v_sampling choose(const api::Engine& engine, std::vector<const char*>* stops) const;
};

// An image by its name: a path, or - for standard input.
api::Image image_named(const std::string& name);

// Standard input, at most `limit` bytes.
std::string read_stdin(size_t limit, const std::string& what);

}  // namespace r1v::cli
