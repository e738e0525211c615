#include "base/error.h"

#include <gtest/gtest.h>

#include "base/checked.h"
#include "base/utf8.h"

namespace r1v {
namespace {

TEST(Error, NamesWhatWhereExpectedFoundAndFix) {
  const Error error(Code::kBundle, "A file is altered.", {"a.bin", "3 bytes", "", "build again"});
  EXPECT_STREQ(error.what(), "A file is altered.\n  where:    a.bin\n  expected: 3 bytes\n  fix:      build again");
  EXPECT_STREQ(code_name(error.code()), "BundleError");
}

TEST(Error, EscapesWhatATerminalMustNotGet) {
  EXPECT_EQ(show("a\x1b[2J\n\xff\xc3\xa9"), "a\\x1b[2J\\n\\xff\xc3\xa9");
  EXPECT_EQ(show(std::string(5000, 'x')).size(), 903u);
}

TEST(Utf8, TakesTheShortestFormsOfScalarValuesOnly) {
  EXPECT_TRUE(is_utf8("a\xc2\x80\xe0\xa0\x80\xed\x9f\xbf\xf0\x90\x80\x80\xf4\x8f\xbf\xbf"));
  for (const char* text :
       {"\x80", "\xc0\x80", "\xe0\x9f\xbf", "\xed\xa0\x80", "\xf0\x8f\xbf\xbf", "\xf4\x90\x80\x80", "\xe2\x82"}) {
    EXPECT_FALSE(is_utf8(text)) << show(text);
  }
}

TEST(Checked, RefusesWhatOverflows) {
  EXPECT_EQ(checked_product({3, 4, 5}, "shape"), 60u);
  EXPECT_THROW(checked_product({SIZE_MAX, 2}, "shape"), Error);
  EXPECT_THROW(checked_sum({SIZE_MAX, 1}, "shape"), Error);
  EXPECT_EQ(checked_cast<int32_t>(int64_t{-5}, "shape"), -5);
  EXPECT_THROW(checked_cast<uint32_t>(int32_t{-5}, "shape"), Error);
  EXPECT_THROW(checked_cast<int64_t>(UINT64_MAX, "shape"), Error);
}

}  // namespace
}  // namespace r1v
