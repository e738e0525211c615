// A prompt with images as TensorRT-LLM takes it: ids beyond the vocabulary are rows of a table of embeddings.
//
//     token ids   151644 872 198 151665 | 152064 152065 ... 152319 | 151666 ...
//     table                               row 0   row 1  ... row 255
//     extra ids   0      0   0   0      | h      h       ...  h    | 0      ...     h: of the image
//
// Blocks of the key-value cache are found again by their ids. Those of two images are the same numbers, so each carries
// its image's hash next to them: without it the second image would be answered from the first one's cache.
#pragma once

#include <cstdint>
#include <vector>

#include "backends/embedded_image.h"

namespace r1v::trtllm {

// 64 bits of an image's digest; never 0, which is text's.
uint64_t extra_id(const ImageDigest& digest);

struct TablePrompt {
  std::vector<int32_t> token_ids;   // below the vocabulary's size a token, from there on a row of the table
  std::vector<uint64_t> extra_ids;  // one for each token id
  std::vector<float> table;         // [rows, hidden] of all images, in order
};

// The table, and the prompt with each image token replaced by the id of its row. Throws kInput: there are more or fewer
// image tokens than rows, or an id is out of range.
TablePrompt table_prompt(const std::vector<int64_t>& token_ids, const std::vector<EmbeddedImage>& images,
                         int64_t image_token_id, int64_t vocab, int64_t hidden);

}  // namespace r1v::trtllm
