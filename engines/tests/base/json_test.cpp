#include "base/json.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "tests/error_message.h"

namespace r1v {
namespace {

TEST(Json, WrongFieldsAreNamed) {
  const Json document = parse_json(R"({"a": {"n": 3, "x": 1.5, "s": "t", "big": 18446744073709551615}})", "file.json");
  const Fields a = Fields(document, "file.json").object("a");
  EXPECT_EQ(a.integer("n", 1, 5), 3);
  EXPECT_EQ(a.number("x"), 1.5);
  EXPECT_EQ(a.text("s"), "t");
  for (const char* name : {"x", "s", "big", "missing"}) {
    EXPECT_NE(error_message([&] { a.integer(name, 0, INT64_MAX); }).find("file.json.a." + std::string(name)),
              std::string::npos);
  }
  EXPECT_NE(error_message([&] { a.integer("n", 4, 5); }).find("from 4 to 5"), std::string::npos);
}

TEST(Json, WhatIsNoneOrTooDeepIsRefused) {
  EXPECT_THROW(parse_json("{", "a"), Error);
  EXPECT_THROW(parse_json("\"\xff\"", "a"), Error);
  EXPECT_THROW(parse_json(std::string(100000, '[') + std::string(100000, ']'), "a"), Error);
}

TEST(Json, ACauseIsShownOnOneShortLineWithItsPlace) {
  const std::string message = error_message([] { parse_json("{\"a\":\n \"b\nc\"}", "file.json"); });
  EXPECT_NE(message.find("found:    parse error at line 3, column 0: "), std::string::npos) << message;
  EXPECT_EQ(message.find("json.exception"), std::string::npos) << message;
  EXPECT_EQ(std::count(message.begin(), message.end(), '\n'), 4) << message;  // where, expected, found and fix
  EXPECT_LT(error_message([] { parse_json("\"" + std::string(5000, 'x'), "file.json"); }).size(), 600u);
}

}  // namespace
}  // namespace r1v
