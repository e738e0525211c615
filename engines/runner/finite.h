// Numbers that are not finite are found where they arise.
#pragma once

#include <cstddef>
#include <string>

namespace r1v {

// Throws kGraph, naming the stage: NaN or infinity among an engine's numbers.
void require_finite(const float* numbers, size_t count, const std::string& stage);

}  // namespace r1v
