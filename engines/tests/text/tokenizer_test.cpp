#include "text/tokenizer.h"

#include <gtest/gtest.h>

#include <ctime>

#include "tests/golden.h"
#include "tests/text/byte_tokenizer.h"
#include "text/nfc.h"
#include "text/streaming.h"

namespace r1v {
namespace {

// The first difference of one tokenizer's golden vectors fails the test.
void expect_tokenizer(const std::filesystem::path& folder) {
  const Json definition = read_golden(folder / "tokenizer.json"), golden = read_golden(folder / "golden.json");
  const Tokenizer tokenizer(definition, tokenizer_from_json(golden.at("tokenizer"), "tokenizer"));
  EXPECT_EQ(tokenizer.vocab_size(), golden.at("vocab_size"));
  const PreTokenizer pre_tokenizer = PreTokenizer::from_json(definition.at("pre_tokenizer"), "pre_tokenizer");
  for (const Json& expected : golden.at("texts")) {
    const std::string text = expected.at("text"), normalized = expected.at("normalized");
    if (!definition.at("normalizer").is_null()) {
      ASSERT_EQ(nfc(text), normalized);
    }
    std::vector<size_t> lengths;
    for (const std::string& word : pre_tokenizer.split(normalized)) lengths.push_back(word.size());
    ASSERT_EQ(lengths, expected.at("words").get<std::vector<size_t>>()) << text;
    ASSERT_EQ(tokenizer.encode_text(text), expected.at("ids").get<std::vector<int64_t>>()) << text;
  }
  for (const Json& expected : golden.at("decoded")) {
    Detokenizer detokenizer(tokenizer);
    std::string text;
    for (const Json& id : expected.at("ids")) text += detokenizer.push(id);
    ASSERT_EQ(text + detokenizer.flush(), expected.at("text"));
  }
}

TEST(Tokenizer, IdsAndTextAreThoseOfPython) {
  GOLDEN_FOLDER(root, "text");
  size_t tokenizers = 0;
  for (const auto& folder : std::filesystem::directory_iterator(root / "tokenizers")) {
    SCOPED_TRACE(folder.path().filename().string());
    expect_tokenizer(folder.path());
    ++tokenizers;
  }
  EXPECT_GE(tokenizers, 7u);
}

TEST(Tokenizer, LongWordsTakeTimeThatIsNearlyLinear) {
  const Tokenizer tokenizer = byte_tokenizer({{"a", "a"}, {"aa", "aa"}, {"aaaa", "aaaa"}, {"a", "b"}, {"b", "a"}});
  const auto seconds = [&](const std::string& text) {
    const std::clock_t start = std::clock();
    EXPECT_FALSE(tokenizer.encode_text(text).empty());
    return static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
  };
  std::string marks, mixed;
  for (size_t index = 0; index < 500'000; ++index) {
    marks += index % 2 == 0 ? "\u0301" : "\u0327";
    mixed += index % 3 == 0 ? "a" : "b";
  }
  for (const std::string& text : {std::string(1'000'000, 'a'), mixed, marks, std::string(1'000'000, ' '),
                                  std::string(1'000'000, '\n'), std::string(1'000'000, '!')}) {
    EXPECT_LT(seconds(text), 20.0) << text.substr(
        0, 4);  // Of the processor: it takes below a second, in quadratic time hours.
  }
}

TEST(Tokenizer, TextThatIsNoUtf8IsRefusedWithItsByte) {
  const Tokenizer tokenizer = byte_tokenizer();
  for (const char* text : {"ab\xff", "ab\xc3", "ab\xed\xa0\x80", "ab\xc0\x80", "ab\xf4\x90\x80\x80"}) {
    try {
      tokenizer.encode_text(text);
      ADD_FAILURE();
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::kInput);
      EXPECT_NE(std::string(error.what()).find("byte 2"), std::string::npos);
    }
  }
}

TEST(Tokenizer, NoTextMakesAnAddedToken) {
  const Tokenizer tokenizer = byte_tokenizer({}, {{"<end>", 256, true}, {"<b>", 257, false}});
  for (const int64_t id : tokenizer.encode_text("<end><b> <end>")) EXPECT_LT(id, 256);
  EXPECT_EQ(tokenizer.token_bytes(256), "<end>");
  EXPECT_TRUE(tokenizer.hides(256));
  EXPECT_FALSE(tokenizer.hides(257));
  EXPECT_EQ(tokenizer.token_bytes(258), "");
  EXPECT_EQ(tokenizer.token_bytes(-1), "");
}

struct Spoiled {
  const char* named;
  const char* patch;  // JSON merge patch of the definition
};

TEST(Tokenizer, WhatIsDamagedOrNotSupportedIsNamed) {
  const Spoiled cases[] = {
      {"Unigram", R"({"model": {"type": "Unigram"}})"},
      {"dropout", R"({"model": {"dropout": 0.1}})"},
      {"end_of_word_suffix", R"({"model": {"end_of_word_suffix": "</w>"}})"},
      {"continuing_subword_prefix", R"({"model": {"continuing_subword_prefix": "#"}})"},
      {"Fuse", R"({"decoder": {"type": "Fuse"}})"},
      {"decoder", R"({"decoder": null})"},
      {"Lowercase", R"({"normalizer": {"type": "Lowercase"}})"},
      {"Strip", R"({"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Strip"}]}})"},
      {"pre_tokenizer", R"({"pre_tokenizer": null})"},
      {"Metaspace", R"({"pre_tokenizer": {"type": "Metaspace"}})"},
      {"nothing behind ByteLevel", R"({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
          {"type": "ByteLevel", "add_prefix_space": false}, {"type": "Split"}]}})"},
      {"ByteLevel", R"({"pre_tokenizer": {"type": "Sequence", "pretokenizers": []}})"},
      {"MergedWithNext", R"({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
          {"type": "Split", "pattern": {"Regex": "a"}, "behavior": "MergedWithNext", "invert": false}]}})"},
      {"String", R"({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
          {"type": "Split", "pattern": {"String": "a"}, "behavior": "Isolated", "invert": false}]}})"},
      {"byte-level", R"({"model": {"vocab": {"a": null}}})"},
      {"model.vocab: b", R"({"model": {"vocab": {"b": "x"}}})"},
      {"model.vocab: b", R"({"model": {"vocab": {"b": 16777216}}})"},
      {"model.vocab: b", R"({"model": {"vocab": {"b": -1}}})"},
      {"model.vocab: b", R"({"model": {"vocab": {"b": 1.5}}})"},
      {"share one id", R"({"model": {"vocab": {"b": 97}}})"},
      {"share one id", R"({"model": {"vocab": {"bb": 256}}})"},
      {"merges.0", R"({"model": {"merges": ["a b c"]}})"},
      {"merges.0", R"({"model": {"merges": ["ab"]}})"},
      {"merges.0", R"({"model": {"merges": [["a", 3]]}})"},
      {"merges.0", R"({"model": {"merges": [["a", "zz"]]}})"},
      {"merges.0", R"({"model": {"merges": [["<", "end>"]], "vocab": {"end>": 300}}})"},
      {"disagree", R"({"added_tokens": [{"id": 256, "content": "<other>"}]})"},
      {"disagree", R"({"added_tokens": [{"id": 255, "content": "<end>"}]})"},
      {"added_tokens", R"({"added_tokens": 3})"},
      {"model", R"({"model": null})"},
  };
  for (const Spoiled& spoiled : cases) {
    Json definition = byte_definition({});
    definition.merge_patch(Json::parse(spoiled.patch));
    try {
      Tokenizer(definition, {"tokenizer.json", {{"<end>", 256, true}}});
      ADD_FAILURE() << spoiled.patch << " is taken";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::kBundle);
      EXPECT_NE(std::string(error.what()).find(spoiled.named), std::string::npos) << spoiled.patch << "\n"
                                                                                  << error.what();
    }
  }
}

TEST(SplitPattern, WhatPcre2WouldReadOtherwiseIsRefused) {
  const char* refused[] = {"",        ".",           "^a",       "a$",        "\\d",         "\\w+",     "\\h",
                           "\\p{Lu}", "\\P{L}",      "\\p{Han}", "a*",        "(a",          "a)",       "[a",
                           "[]a]",    "[[:alpha:]]", "[a&&b]",   "[\\S]",     "[\\s-z]",     "(?m:a)",   "[\x01-\\s]",
                           "[-\\s]",  "(*ACCEPT)a",  "(?i:ss)",  "(?i:FI|a)", "(?i:\u00df)", "(?i:(a))", "(?i:a+)",
                           "(*UTF)a", "(?<n>a)",     "a{2}+",    "a{2}?",     "a{,3}",       "\\x41",    "\\",
                           "a|",      "(?i)a",       "\\Ka",     "a{3"};
  for (const char* pattern : refused) EXPECT_THROW(SplitPattern(pattern, "pattern"), Error) << pattern;
}

TEST(SplitPattern, WhatTakesTooLongIsAnError) {
  const SplitPattern pattern("(?:a+a+a+a+a+)+[bc]", "pattern");
  std::vector<std::string_view> pieces;
  const std::string text(10'000, 'a');
  EXPECT_THROW(pattern.split(text, true, &pieces), Error);
}

TEST(Utf8Decoder, BrokenBytesBecomeReplacementCharacters) {
  Utf8Decoder decoder;
  EXPECT_EQ(decoder.push("a\xf0\x9f"), "a");
  EXPECT_EQ(decoder.push("\x99\x82\xe0\x80"), "\U0001f642\ufffd\ufffd");
  EXPECT_EQ(decoder.push("\xe4\xb8"
                         "b"),
            "\ufffd"
            "b");
  EXPECT_EQ(decoder.push("\xed\xa0"), "");
  EXPECT_EQ(decoder.push("\x80"), "\ufffd\ufffd\ufffd");
  EXPECT_EQ(decoder.push("\xed\xa0"), "");
  EXPECT_EQ(decoder.flush(), "\ufffd\ufffd");
  EXPECT_EQ(decoder.push("\xf1"), "");
  EXPECT_EQ(decoder.flush(), "\ufffd");
  EXPECT_EQ(decoder.flush(), "");
}

}  // namespace
}  // namespace r1v
