// Tokens of a prompt or of a cache row, with the images that stand among them.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "backends/embedded_image.h"

namespace r1v {

// Two sequences begin alike as far as their tokens are equal and their image tokens are the same images'.
class TokenSequence {
 public:
  TokenSequence() = default;
  // Throws kInput: there are not as many image embeddings of `hidden` numbers as image tokens.
  TokenSequence(std::vector<int64_t> ids, const std::vector<EmbeddedImage>& images, int64_t image_token_id,
                int64_t hidden);

  const std::vector<int64_t>& ids() const { return ids_; }
  int64_t size() const { return static_cast<int64_t>(ids_.size()); }

  // How many tokens two sequences have in common at their beginning.
  int64_t common_prefix(const TokenSequence& other) const;
  // Goes on with the tokens of another sequence, from this one's length to `stop`.
  void take(const TokenSequence& other, int64_t stop);
  void append(int64_t token_id) { ids_.push_back(token_id); }
  // Forgets the tokens from `length` on.
  void truncate(int64_t length);

 private:
  using PlacedImage = std::pair<int64_t, ImageDigest>;

  std::vector<int64_t> ids_;
  std::vector<PlacedImage> images_;  // where each image's tokens begin, in order
};

}  // namespace r1v
