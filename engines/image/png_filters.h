// The filters of PNG's rows (PNG, chapter 9), undone.
#pragma once

#include <cstddef>
#include <cstdint>

namespace r1v {

// Undoes the filter `kind` in a row of `bytes` bytes, of which a pixel has `step`; `above` is the row before it, or
// zeros. False: there is no such filter.
bool unfilter(int kind, uint8_t* row, const uint8_t* above, size_t bytes, size_t step);

}  // namespace r1v
