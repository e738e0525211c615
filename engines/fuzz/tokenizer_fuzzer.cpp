// tokenizer.json: any content is refused with an Error, or gives a tokenizer whose ids make the text again.
//
// An input is a JSON merge patch of a small definition, then, behind a null byte, a text. A whole definition is a patch
// too.
#include "fuzz/check.h"
#include "tests/text/byte_tokenizer.h"
#include "text/streaming.h"

namespace {

using namespace r1v;

std::string decode(const Tokenizer& tokenizer, const std::vector<int64_t>& ids) {
  Detokenizer detokenizer(tokenizer);
  std::string text;
  for (const int64_t id : ids) text += detokenizer.push(id);
  return text + detokenizer.flush();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string input(reinterpret_cast<const char*>(data), size);
  const size_t end = std::min(input.find('\0'), input.size());
  const std::string text = input.substr(std::min(end + 1, input.size()));
  try {
    static const Json kDefinition = byte_definition({{"a", "b"}, {"ab", "c"}});
    Json definition = kDefinition;
    definition.merge_patch(parse_json(input.substr(0, end), "patch"));
    const Tokenizer tokenizer(definition, {"tokenizer.json", {{"<end>", 500, true}, {"<b>", 501, false}}});
    const std::vector<int64_t> ids = tokenizer.encode_text(text);
    for (const int64_t id : ids) check(id != 500 && id != 501, "a text made an added token");
    const bool changes_text = !definition["normalizer"].is_null() ||
                              definition.dump().find("Split") != std::string::npos ||
                              definition["pre_tokenizer"].value("add_prefix_space", true);
    check(changes_text || decode(tokenizer, ids) == text, "the ids do not make the text");
    decode(tokenizer, {-1, 0, 500, 501, tokenizer.vocab_size()});
  } catch (const Error&) {
  }
  return 0;
}
