// float32 numbers to and from the types that graphs compute in.
#pragma once

#include <string>

#include "bundle/contract_document.h"

namespace r1v {

// Copies numbers into `type`, a floating-point one. Throws kGraph, naming the graph and the tensor: a number leaves the
// range of the type.
void convert(const float* from, size_t count, ElementType type, void* to, const std::string& graph,
             const std::string& tensor);

// float32 numbers from those of `type`, a floating-point one.
void to_float(const void* from, size_t count, ElementType type, float* to);

}  // namespace r1v
