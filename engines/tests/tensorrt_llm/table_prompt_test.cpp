#include "backends/tensorrt_llm/table_prompt.h"

#include <gtest/gtest.h>

#include <memory>

#include "tests/error_message.h"

namespace r1v::trtllm {
namespace {

EmbeddedImage image(std::vector<float> embeds, uint8_t digest) {
  ImageDigest whole{};
  whole[1] = digest;
  return {std::make_shared<const std::vector<float>>(std::move(embeds)), whole};
}

TEST(TablePrompt, ImageTokensBecomeTheIdsOfTheirRows) {
  const TablePrompt prompt = table_prompt({5, 9, 9, 6, 9}, {image({1, 2, 3, 4}, 1), image({5, 6}, 2)}, 9, 40, 2);
  EXPECT_EQ(prompt.token_ids, (std::vector<int32_t>{5, 40, 41, 6, 42}));
  EXPECT_EQ(prompt.extra_ids, (std::vector<uint64_t>{0, 1 << 8, 1 << 8, 0, 2 << 8}));
  EXPECT_EQ(prompt.table, (std::vector<float>{1, 2, 3, 4, 5, 6}));
}

TEST(TablePrompt, AnImageIsNeverMarkedAsText) { EXPECT_EQ(extra_id({}), 1u); }

TEST(TablePrompt, ImagesThatDoNotFitAndIdsOutOfRangeAreRefused) {
  const auto refusal = [](const std::vector<int64_t>& ids) {
    return error_message([&] { table_prompt(ids, {image({1, 2}, 1)}, 9, 40, 2); });
  };
  EXPECT_NE(refusal({5}).find("1 image tokens"), std::string::npos);
  EXPECT_NE(refusal({9, 9}).find("found:    2"), std::string::npos);
  EXPECT_NE(refusal({9, 40}).find("0 to 39"), std::string::npos);
  EXPECT_NE(refusal({9, -1}).find("found:    -1"), std::string::npos);
}

}  // namespace
}  // namespace r1v::trtllm
