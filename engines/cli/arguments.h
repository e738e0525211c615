// The command line.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "r1v/r1v.h"

namespace r1v::cli {

struct EngineArguments {
  std::string bundle, target, vision_target, engine, device = "cpu", onnxruntime, tensorrt, tensorrt_llm;
  int gpu = 0, threads = 0;
  bool verify = false;
};

struct SamplingArguments {
  bool greedy = false;
  std::optional<int64_t> max_new_tokens, max_reasoning_tokens, logprobs, top_k;
  std::optional<double> temperature, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty;
  uint64_t seed = 0;
  std::vector<std::string> stop;
  bool stop_in_reasoning = false;
};

struct RunArguments {
  EngineArguments engine;
  SamplingArguments sampling;
  std::vector<std::string> images;
  std::string question;
  bool no_think = false, grounding = false, answer_only = false, chat = false;
  std::string format = "text";
};

struct BenchArguments {
  EngineArguments engine;
  std::string image, question = "What do you see?";
  int64_t tokens = 64;
  int runs = 5;
};

enum class Command { kRun, kBench, kVerify };

struct Arguments {
  Command command = Command::kRun;
  RunArguments run;
  BenchArguments bench;
  std::string verify_bundle;
};

// Reads the command line. Where there is nothing to run, as after --help, the exit code.
std::optional<int> parse(int argc, char** argv, Arguments* arguments);

}  // namespace r1v::cli
