#include "runner/kv_cache.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "tests/runner/fake_engine.h"

namespace r1v {
namespace {

std::vector<float> embeds(const std::vector<float>& values) {
  std::vector<float> rows;
  for (float value : values) rows.insert(rows.end(), 2, value);
  return rows;
}

std::vector<float> logits_after(const std::vector<float>& values) {
  KVCache cache(FakeEngine().decoder(1, 64), 40);
  const auto count = static_cast<int64_t>(values.size());
  return cache.append(embeds(values).data(), count, {count});
}

TEST(KVCache, TokensInPiecesGiveTheLogitsOfTokensAtOnce) {
  KVCache cache(FakeEngine().decoder(1, 64), 40);
  cache.append(embeds({1, 2, 3}).data(), 3, {3});
  EXPECT_EQ(cache.append(embeds({4}).data(), 1, {1}), logits_after({1, 2, 3, 4}));
  EXPECT_EQ(cache.length(0), 4);
}

TEST(KVCache, PaddingIsOverwrittenAndNeverSeen) {
  KVCache cache(FakeEngine().decoder(2, 64), 40);
  const std::vector<float> logits = cache.append(embeds({1, 2, 3, 7, 9, 9}).data(), 3, {3, 1});
  EXPECT_EQ(std::vector<float>(logits.begin() + 40, logits.end()), logits_after({7}));
  cache.append(embeds({4, 8}).data(), 1, {1, 1});
  EXPECT_EQ(cache.append(embeds({5}).data(), 1, {1}, 1), logits_after({7, 8, 5}));
  EXPECT_EQ(cache.length(0), 4);
}

TEST(KVCache, RowsAreCopiedSwappedCutAndKept) {
  KVCache cache(FakeEngine().decoder(2, 8), 40);
  cache.append(embeds({1, 2, 3, 4, 5, 6}).data(), 3, {3, 3});
  cache.swap_rows(0, 1);
  cache.truncate(1, 2);
  cache.resize(3, 16);
  cache.copy_row(1, 2, 2);
  EXPECT_EQ(cache.append(embeds({9}).data(), 1, {1}, 0), logits_after({4, 5, 6, 9}));
  EXPECT_EQ(cache.append(embeds({9}).data(), 1, {1}, 1), logits_after({1, 2, 9}));
  EXPECT_EQ(cache.append(embeds({8}).data(), 1, {1}, 2), logits_after({1, 2, 8}));
}

TEST(KVCache, MoreThanFitsIsRefused) {
  KVCache cache(FakeEngine().decoder(1, 2), 40);
  EXPECT_THROW(cache.append(embeds({1, 2, 3}).data(), 3, {3}), Error);
}

TEST(KVCache, CapacitiesAndBudgetsStayWithinTheModelsPositions) {
  EXPECT_EQ(plan_capacity(65, 4096), 128);
  EXPECT_EQ(plan_capacity(4090, 4091), 4091);
  EXPECT_EQ(new_token_budget(10, 100, 50), 40);
  EXPECT_THROW(new_token_budget(50, 1, 50), Error);
}

}  // namespace
}  // namespace r1v
