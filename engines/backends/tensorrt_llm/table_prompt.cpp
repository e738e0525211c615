#include "backends/tensorrt_llm/table_prompt.h"

#include <algorithm>
#include <string>

#include "base/error.h"

namespace r1v::trtllm {

uint64_t extra_id(const ImageDigest& digest) {
  uint64_t id = 0;
  for (int i = 7; i >= 0; --i) id = id << 8 | digest[static_cast<size_t>(i)];
  return id == 0 ? 1 : id;
}

TablePrompt table_prompt(const std::vector<int64_t>& token_ids, const std::vector<EmbeddedImage>& images,
                         int64_t image_token_id, int64_t vocab, int64_t hidden) {
  TablePrompt prompt;
  std::vector<uint64_t> ids_of_rows;
  for (const EmbeddedImage& image : images) {
    prompt.table.insert(prompt.table.end(), image.embeds->begin(), image.embeds->end());
    ids_of_rows.resize(prompt.table.size() / static_cast<size_t>(hidden), extra_id(image.digest));
  }
  const auto places = static_cast<size_t>(std::count(token_ids.begin(), token_ids.end(), image_token_id));
  if (places != ids_of_rows.size()) {
    throw Error(Code::kInput, "The number of image tokens in the prompt differs from the number of image embeddings.",
                {"prompt", std::to_string(ids_of_rows.size()) + " image tokens", std::to_string(places), ""});
  }
  size_t row = 0;
  for (const int64_t token : token_ids) {
    if (token < 0 || token >= vocab) {
      throw Error(Code::kInput, "A token id is out of range.",
                  {"prompt", "0 to " + std::to_string(vocab - 1), std::to_string(token), ""});
    }
    const bool is_image = token == image_token_id;
    prompt.extra_ids.push_back(is_image ? ids_of_rows[row] : 0);
    prompt.token_ids.push_back(static_cast<int32_t>(is_image ? vocab + static_cast<int64_t>(row++) : token));
  }
  return prompt;
}

}  // namespace r1v::trtllm
