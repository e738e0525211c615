#include "bundle/numbers.h"

#include <cmath>
#include <cstring>

#include "base/half.h"

namespace r1v {
namespace {

// Bits of the infinity of a 16-bit type, without its sign.
uint16_t infinity_of(ElementType type) { return type == ElementType::kFloat16 ? 0x7c00 : 0x7f80; }

}  // namespace

void convert(const float* from, size_t count, ElementType type, void* to, const std::string& graph,
             const std::string& tensor) {
  if (count == 0) return;
  if (type == ElementType::kFloat32) {
    std::memcpy(to, from, count * sizeof(float));
    return;
  }
  auto* halves = static_cast<uint16_t*>(to);
  for (size_t i = 0; i < count; ++i) {
    halves[i] = type == ElementType::kFloat16 ? float_to_half(from[i]) : float_to_bfloat16(from[i]);
    if ((halves[i] & 0x7fff) == infinity_of(type) && std::isfinite(from[i])) {
      throw Error(Code::kGraph,
                  "An input of the " + graph + " graph is beyond the range of " + element_name(type) + ".",
                  {graph + ": " + tensor, type == ElementType::kFloat16 ? "numbers of at most 65504" : "",
                   std::to_string(from[i]), "build with --precision fp32"});
    }
  }
}

void to_float(const void* from, size_t count, ElementType type, float* to) {
  if (count == 0) return;
  if (type == ElementType::kFloat32) {
    std::memcpy(to, from, count * sizeof(float));
    return;
  }
  const auto* halves = static_cast<const uint16_t*>(from);
  for (size_t i = 0; i < count; ++i) {
    to[i] = type == ElementType::kFloat16 ? half_to_float(halves[i]) : bfloat16_to_float(halves[i]);
  }
}

}  // namespace r1v
