// `r1v bench`: latency by stage, time to first token, tokens per second, peak memory.
#pragma once

#include <string>

#include "cli/options.h"

namespace r1v::cli {

struct BenchArguments {
  EngineArguments engine;
  std::string image, question = "What do you see?";
  int64_t tokens = 64;
  int runs = 5;

  void add_to(CLI::App& command);
};

void bench(const BenchArguments& arguments);

}  // namespace r1v::cli
