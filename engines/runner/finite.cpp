#include "runner/finite.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace r1v {

void require_finite(const std::vector<float>& numbers, const std::string& stage) {
  const auto count = std::count_if(numbers.begin(), numbers.end(), [](float number) { return !std::isfinite(number); });
  if (count == 0) return;
  throw Error(Code::kGraph, "The " + stage + " graph gives numbers that are not finite.",
              {stage, "finite numbers",
               std::to_string(count) + " of " + std::to_string(numbers.size()) + " are NaN or infinite",
               "run `r1v-export check` to find the first bad boundary, or build with --precision fp32"});
}

}  // namespace r1v
