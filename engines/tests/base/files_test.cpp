#include "base/files.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <fstream>

namespace r1v {
namespace {

class Files : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ =
        std::filesystem::path(::testing::TempDir()) / ::testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::filesystem::path folder_;
};

TEST_F(Files, AreReadWhole) {
  const std::string content("a\0b", 3);
  std::ofstream(folder_ / "a", std::ios::binary) << content;
  EXPECT_EQ(read_file(folder_ / "a"), content);
  std::string pieces;
  read_pieces(folder_ / "a", [&](const char* data, size_t size) { pieces.append(data, size); });
  EXPECT_EQ(pieces, content);
}

TEST_F(Files, BeyondTheLimitAreRefused) {
  std::ofstream(folder_ / "a") << "abc";
  EXPECT_THROW(read_file(folder_ / "a", 2), Error);
}

TEST_F(Files, PipesAndFoldersAndWhatIsMissingAreRefusedAtOnce) {
  ASSERT_EQ(::mkfifo((folder_ / "pipe").c_str(), 0600), 0);
  for (const char* name : {"pipe", ".", "missing"}) EXPECT_THROW(read_file(folder_ / name), Error) << name;
}

TEST(Paths, StayInside) {
  for (const char* path : {"a", "a/b.c", "a..b", "a/b:c"}) EXPECT_TRUE(is_inside(path)) << path;
  for (const char* path : {"", "/a", "../a", "a/../b", "a/..", ".", "a//b", "a/", "a\\b", "c:/a", "./a"}) {
    EXPECT_FALSE(is_inside(path)) << path;
  }
  EXPECT_FALSE(is_inside(std::string("a\0b", 3)));
}

}  // namespace
}  // namespace r1v
