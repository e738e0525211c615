// `r1v bench`: latency by stage, time to first token, tokens per second, peak memory.
#pragma once

#include "cli/arguments.h"

namespace r1v::cli {

void bench(const BenchArguments& arguments);

}  // namespace r1v::cli
