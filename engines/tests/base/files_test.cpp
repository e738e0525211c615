#include "base/files.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include "tests/temporary_folder.h"

namespace r1v {
namespace {

TEST(Files, AreReadWhole) {
  const TemporaryFolder folder;
  const std::string content("a\0b", 3);
  folder.write("a", content);
  EXPECT_EQ(read_file(folder.path() / "a"), content);
  std::string pieces;
  read_pieces(folder.path() / "a", [&](const char* data, size_t size) { pieces.append(data, size); });
  EXPECT_EQ(pieces, content);
}

TEST(Files, BeyondTheLimitAreRefused) {
  const TemporaryFolder folder;
  folder.write("a", "abc");
  EXPECT_THROW(read_file(folder.path() / "a", 2), Error);
}

TEST(Files, PipesAndFoldersAndWhatIsMissingAreRefusedAtOnce) {
  const TemporaryFolder folder;
  ASSERT_EQ(::mkfifo((folder.path() / "pipe").c_str(), 0600), 0);
  for (const char* name : {"pipe", ".", "missing"}) EXPECT_THROW(read_file(folder.path() / name), Error) << name;
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
