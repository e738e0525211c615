#include "base/sha256.h"

#include <gtest/gtest.h>

namespace r1v {
namespace {

std::string hash(const std::string& text, size_t piece, bool portable) {
  Sha256 sha256(portable);
  for (size_t at = 0; at < text.size(); at += piece) sha256.update(text.data() + at, std::min(piece, text.size() - at));
  return sha256.hex();
}

// The examples of FIPS 180-4.
TEST(Sha256, GivesThePublishedDigests) {
  for (const bool portable : {false, true}) {
    EXPECT_EQ(hash("", 1, portable), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    EXPECT_EQ(hash("abc", 1, portable), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    EXPECT_EQ(hash(std::string(1000000, 'a'), 999, portable),
              "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
  }
}

}  // namespace
}  // namespace r1v
