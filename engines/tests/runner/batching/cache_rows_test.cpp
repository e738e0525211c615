#include "runner/batching/cache_rows.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "tests/runner/fake_engine.h"

namespace r1v {
namespace {

TokenSequence counting(int64_t length, int64_t from = 1) {
  TokenSequence tokens;
  for (int64_t i = 0; i < length; ++i) tokens.append(from + i);
  return tokens;
}

// Puts tokens into a row, as a batch does.
void fill(CacheRows* rows, CacheRow* row, const TokenSequence& tokens) {
  while (row->tokens.size() < tokens.size()) {
    const std::vector<float> embeds(2, static_cast<float>(tokens.ids()[static_cast<size_t>(row->tokens.size())]));
    rows->cache().append(embeds.data(), 1, {1}, row->index);
    row->tokens.take(tokens, row->tokens.size() + 1);
  }
}

TEST(CacheRows, GrowWithinTheBudgetAndNoFurther) {
  FakeEngine engine;  // two bytes a slot
  CacheRows rows(engine, {256, 8, 2 * 64 * 3, false});
  std::vector<CacheRow*> taken;
  for (int i = 0; i < 3; ++i) taken.push_back(rows.acquire(counting(10), 40));
  EXPECT_EQ(rows.rows(), 3);
  EXPECT_FALSE(rows.has_room(40));
  EXPECT_FALSE(rows.reserve(taken[1], 65));
  rows.release(taken[0]);
  EXPECT_FALSE(rows.reserve(taken[1], 128));
  rows.release(taken[2]);
  EXPECT_TRUE(rows.reserve(taken[1], 128));
  EXPECT_FALSE(rows.has_room(40));  // every row would have 128
  rows.release(taken[1]);
  EXPECT_EQ(rows.room_behind(100), 192 - 100);
  EXPECT_THROW(rows.room_behind(192), Error);
  EXPECT_EQ(rows.acquire(counting(10), 192)->needed, 192);
  EXPECT_EQ(rows.rows(), 1);
  EXPECT_EQ(rows.bytes(), 2 * 192);
}

TEST(CacheRows, AFinishedRowsBeginningIsTakenOverOrCopied) {
  FakeEngine engine;
  CacheRows rows(engine, {256, 4, 1 << 20, true});
  const TokenSequence prompt = counting(40);
  CacheRow* first = rows.acquire(prompt, 60);
  fill(&rows, first, prompt);
  rows.start(first);
  CacheRow* second = rows.acquire(prompt, 60);
  EXPECT_EQ(second->tokens.size(), 0);
  rows.reuse(second, prompt);
  EXPECT_EQ(second->tokens.size(), 39);  // the last one's logits are needed
  rows.release(first);
  CacheRow* third = rows.acquire(counting(50), 60);
  EXPECT_EQ(third->tokens.size(), 40);
}

TEST(CacheRows, DecodedRowsAreTheFirstOnes) {
  FakeEngine engine;
  CacheRows rows(engine, {256, 4, 1 << 20, false});
  CacheRow* a = rows.acquire(counting(3), 10);
  CacheRow* b = rows.acquire(counting(3, 10), 10);
  CacheRow* c = rows.acquire(counting(3, 20), 10);
  for (CacheRow* row : {c, a}) rows.start(row);
  EXPECT_EQ(c->index, 0);
  EXPECT_EQ(a->index, 1);
  rows.release(c);
  EXPECT_EQ(a->index, 0);
  rows.start(b);
  EXPECT_EQ(b->index, 1);
}

}  // namespace
}  // namespace r1v
