// Numbers that are not finite are found where they arise.
#pragma once

#include <string>
#include <vector>

namespace r1v {

// Throws kGraph, naming the stage: NaN or infinity among an engine's numbers.
void require_finite(const std::vector<float>& numbers, const std::string& stage);

}  // namespace r1v
