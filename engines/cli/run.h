// `r1v run`: ask a bundle about images.
#pragma once

#include "cli/arguments.h"

namespace r1v::cli {

void run(const RunArguments& arguments);

}  // namespace r1v::cli
