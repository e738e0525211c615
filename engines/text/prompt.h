// Conversations become token ids, with room for the image embeddings. Only the document and the images make special
// tokens; text, whoever wrote it, is only ever text.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "text/documents.h"
#include "text/tokenizer.h"

namespace r1v {

enum class Role { kSystem, kUser, kAssistant };

// One message of a conversation. A user's images stand where the text has the placeholder, and before the text where it
// never does. Without images a placeholder is text as any other.
struct Turn {
  Role role;
  std::string text;
  int64_t images = 0;
};

struct PromptOptions {
  bool think = true;       // open reasoning, if the document has what does it
  bool grounding = false;  // names of grounding tokens in messages become those tokens
};

// Token ids of a conversation, up to where the assistant continues. A system turn replaces the document's own system
// message; an empty one removes it.
// Args:
//   tiles_per_image: of each image, in the order of the turns.
//   max_positions: of the model; the prompt leaves room for one token at least.
// Throws kInput: turns out of order or empty, placeholders that do not match the images, or a prompt that is too long.
std::vector<int64_t> encode_prompt(const Tokenizer& tokenizer, const PromptDocument& document,
                                   const std::vector<Turn>& turns, const std::vector<int64_t>& tiles_per_image,
                                   int64_t max_positions, const PromptOptions& options = {});

// Token ids of a text that the model continues as it is. Throws kInput: it is empty or too long.
std::vector<int64_t> encode_raw(const Tokenizer& tokenizer, const std::string& text, int64_t max_positions);

}  // namespace r1v
