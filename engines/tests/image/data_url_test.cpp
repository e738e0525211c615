#include "image/data_url.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace r1v {
namespace {

TEST(DataUrl, IsBase64OrPercentEncoded) {
  EXPECT_EQ(read_data_url("data:image/png;base64,AP8QIA=="), std::string("\0\xff\x10\x20", 4));
  EXPECT_EQ(read_data_url("DATA:;BASE64,QU J\nD\t"), "ABC");
  EXPECT_EQ(read_data_url("data:;base64,QUJD%51UI%3D"), "ABCAB");
  EXPECT_EQ(read_data_url("data:,a%20b%2g%2"), "a b%2g%2");
  EXPECT_EQ(read_data_url("data:;base64,"), "");
}

TEST(DataUrl, IsRefusedWhereItIsCutOffOrHoldsAnythingElse) {
  for (const char* url : {"data:image/png;base64", "data:;base64,QUJ", "data:;base64,Q===", "data:;base64,QU*D",
                          "data:;base64,QQ==QQ==", "data:;base64,Q"}) {
    EXPECT_THROW(read_data_url(url), Error) << url;
  }
}

TEST(DataUrl, IsKnownByItsScheme) {
  EXPECT_TRUE(is_data_url("data:,"));
  EXPECT_TRUE(is_data_url("Data:image/png"));
  EXPECT_FALSE(is_data_url("data"));
  EXPECT_FALSE(is_data_url("http://data:"));
}

}  // namespace
}  // namespace r1v
