// Image data of a PNG, inflated at once: with libdeflate, which is about twice as fast as zlib.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/large_array.h"
#include "image/png_stream.h"

namespace r1v {

// The data of a frame, which must inflate to exactly `bytes` bytes; the stream is at its end then. Null where it does
// not, is damaged or very large: nothing was read then, and zlib says piece by piece how far it goes.
LargeArray<uint8_t> inflate_at_once(PngStream* stream, size_t bytes);

}  // namespace r1v
