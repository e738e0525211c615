#include "runner/finite.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace r1v {

void require_finite(const float* numbers, size_t count, const std::string& stage) {
  const auto bad = std::count_if(numbers, numbers + count, [](float number) { return !std::isfinite(number); });
  if (bad == 0) return;
  throw Error(Code::kGraph, "The " + stage + " graph gives numbers that are not finite.",
              {stage, "finite numbers", std::to_string(bad) + " of " + std::to_string(count) + " are NaN or infinite",
               "run `r1v-export check` to find the first bad boundary, or build with --precision fp32"});
}

}  // namespace r1v
