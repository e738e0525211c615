// Structs of the C API that grow at their end: what a caller compiled with another version of r1v.h gives and takes.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "base/error.h"
#include "r1v/r1v.h"

namespace r1v::capi {

// Throws kUsage: no struct, or one that its init function has not seen.
inline void require_struct(bool given, size_t struct_size, const char* name) {
  if (given && struct_size >= sizeof(size_t)) return;
  throw Error(Code::kUsage, "A struct was not initialized.",
              {name, "struct_size as its r1v_..._init function sets it", given ? "too small" : "NULL",
               "call that function first"});
}

// `whole` to a caller's struct of `struct_size` bytes, as much of it as that has room for.
template <typename Struct>
void write_struct(Struct whole, Struct* given, size_t struct_size) {
  whole.struct_size = struct_size;
  std::memcpy(static_cast<void*>(given), &whole, std::min(struct_size, sizeof whole));
}

// A caller's struct in this library's size: what the caller does not know is as in `defaults`.
template <typename Struct>
Struct read_struct(const Struct* given, const Struct& defaults, const char* name) {
  require_struct(given != nullptr, given != nullptr ? given->struct_size : 0, name);
  Struct whole = defaults;
  std::memcpy(static_cast<void*>(&whole), given, std::min(given->struct_size, sizeof whole));
  return whole;
}

}  // namespace r1v::capi
