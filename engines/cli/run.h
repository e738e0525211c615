// `r1v run`: ask a bundle about images.
#pragma once

#include <string>
#include <vector>

#include "cli/options.h"

namespace r1v::cli {

struct RunArguments {
  EngineArguments engine;
  SamplingArguments sampling;
  std::vector<std::string> images;
  std::string question;
  bool no_think = false, grounding = false, answer_only = false, chat = false;

  void add_to(CLI::App& command);
};

void run(const RunArguments& arguments);

}  // namespace r1v::cli
