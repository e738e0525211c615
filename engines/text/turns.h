// What a conversation has to be before it is rendered.
#pragma once

#include <string>
#include <vector>

#include "text/prompt.h"

namespace r1v {

// Throws kInput: turns are out of order, empty or no UTF-8, or their images and placeholders do not match.
void check_turns(const std::vector<Turn>& turns, const std::vector<int64_t>& tiles_per_image,
                 const std::string& placeholder);

// Throws kInput for what cannot fit into the context, before any work is spent on it.
void check_length(const std::vector<Turn>& turns, const std::vector<int64_t>& tiles_per_image, int64_t tokens_per_tile,
                  int64_t max_positions);

// Throws kInput: the prompt alone takes all positions.
void require_room(size_t prompt_tokens, int64_t max_positions);

}  // namespace r1v
