#include "runner/batching/token_sequence.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace r1v {
namespace {

EmbeddedImage image(uint8_t digest, size_t rows = 2) {
  EmbeddedImage image{std::make_shared<const std::vector<float>>(rows * 2), {}};
  image.digest[0] = digest;
  return image;
}

TokenSequence sequence(const std::vector<int64_t>& ids, const std::vector<EmbeddedImage>& images = {}) {
  return TokenSequence(ids, images, 0, 2);
}

TEST(TokenSequence, SequencesBeginAlikeAsFarAsTokensAndImagesAreEqual) {
  const TokenSequence base = sequence({1, 0, 0, 2, 0, 0, 3}, {image(1), image(2)});
  EXPECT_EQ(base.common_prefix(base), 7);
  EXPECT_EQ(base.common_prefix(sequence({1, 0, 0, 2, 0, 0, 4}, {image(1), image(2)})), 6);
  EXPECT_EQ(base.common_prefix(sequence({1, 0, 0, 2, 0, 0, 3}, {image(1), image(9)})), 4);
  EXPECT_EQ(base.common_prefix(sequence({1, 0, 0, 2, 0, 0, 3}, {image(9), image(2)})), 1);
  EXPECT_EQ(base.common_prefix(sequence({1, 0, 0, 0, 0}, {image(1, 4)})), 3);
  EXPECT_EQ(base.common_prefix(TokenSequence()), 0);
}

TEST(TokenSequence, PiecesTakenFromAnotherAndCutAgainKeepTheirImages) {
  const TokenSequence whole = sequence({1, 0, 0, 2, 0, 0, 3}, {image(1), image(2)});
  TokenSequence row;
  for (const int64_t stop : {2, 2, 4, 5, 7}) {
    row.take(whole, stop);
    EXPECT_EQ(row.size(), stop);
    EXPECT_EQ(row.common_prefix(whole), stop);
  }
  row.truncate(4);
  row.append(0);
  EXPECT_EQ(row.common_prefix(whole), 4);  // a generated image token is no image
}

TEST(TokenSequence, AsManyImageTokensAsEmbeddings) {
  EXPECT_THROW(sequence({0, 0, 0}, {image(1)}), Error);
  EXPECT_THROW(sequence({0}, {image(1)}), Error);
  EXPECT_THROW(sequence({1}, {image(1)}), Error);
}

}  // namespace
}  // namespace r1v
