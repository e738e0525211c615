#include "runner/batching/token_sequence.h"

#include <algorithm>
#include <string>

#include "base/error.h"

namespace r1v {

TokenSequence::TokenSequence(std::vector<int64_t> ids, const std::vector<EmbeddedImage>& images, int64_t image_token_id,
                             int64_t hidden)
    : ids_(std::move(ids)) {
  std::vector<int64_t> places;
  for (size_t i = 0; i < ids_.size(); ++i) {
    if (ids_[i] == image_token_id) places.push_back(static_cast<int64_t>(i));
  }
  size_t rows = 0;
  for (const EmbeddedImage& image : images) {
    if (rows < places.size()) images_.emplace_back(places[rows], image.digest);
    rows += image.embeds->size() / static_cast<size_t>(hidden);
  }
  if (rows == places.size()) return;
  throw Error(Code::kInput, "The prompt's image tokens do not match the images.",
              {"embed", std::to_string(rows) + " image tokens, one for each image embedding",
               std::to_string(places.size()), ""});
}

int64_t TokenSequence::common_prefix(const TokenSequence& other) const {
  const auto [mine, theirs] = std::mismatch(ids_.begin(), ids_.end(), other.ids_.begin(), other.ids_.end());
  const int64_t length = mine - ids_.begin();
  for (size_t i = 0;; ++i) {
    const bool ours = i < images_.size() && images_[i].first < length;
    const bool others = i < other.images_.size() && other.images_[i].first < length;
    if (!ours && !others) return length;
    if (!ours) return other.images_[i].first;
    if (!others) return images_[i].first;
    if (images_[i] != other.images_[i]) return std::min(images_[i].first, other.images_[i].first);
  }
}

void TokenSequence::take(const TokenSequence& other, int64_t stop) {
  const int64_t start = size();
  if (stop <= start) return;
  ids_.insert(ids_.end(), other.ids_.begin() + start, other.ids_.begin() + stop);
  for (const PlacedImage& image : other.images_) {
    if (image.first >= start && image.first < stop) images_.push_back(image);
  }
}

void TokenSequence::truncate(int64_t length) {
  if (length >= size()) return;
  ids_.resize(static_cast<size_t>(length));
  while (!images_.empty() && images_.back().first >= length) images_.pop_back();
}

}  // namespace r1v
