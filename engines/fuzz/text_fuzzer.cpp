// Streams of text: the size of the pieces that bytes come in does not change what comes out, and it is UTF-8.
#include "base/utf8.h"
#include "fuzz/check.h"
#include "text/nfc.h"
#include "text/reasoning.h"
#include "text/streaming.h"

namespace {

using namespace r1v;

AnswerPiece stream(const std::string& bytes, size_t step, bool thinking, const std::vector<std::string>& stops) {
  Utf8Decoder decoder;
  ReasoningSplitter splitter(thinking, stops, {"<think>", "</think>"});
  AnswerPiece whole;
  const auto add = [&](const AnswerPiece& piece) {
    whole.reasoning += piece.reasoning;
    whole.answer += piece.answer;
  };
  for (size_t at = 0; at < bytes.size(); at += step) add(splitter.push(decoder.push(bytes.substr(at, step))));
  add(splitter.push(decoder.flush()));
  add(splitter.flush());
  return whole;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const bool thinking = (data[0] & 1) != 0;
  const std::vector<std::string> stops =
      (data[0] & 2) != 0 ? std::vector<std::string>{"ab", "b</"} : std::vector<std::string>();
  const std::string bytes(reinterpret_cast<const char*>(data + 1), size - 1);
  const AnswerPiece whole = stream(bytes, size, thinking, stops);
  check(is_utf8(whole.reasoning) && is_utf8(whole.answer), "the text is no UTF-8");
  for (const size_t step : {1, 2, 3, 7}) {
    const AnswerPiece pieces = stream(bytes, step, thinking, stops);
    check(pieces.reasoning == whole.reasoning && pieces.answer == whole.answer, "the pieces change the text");
  }
  const std::string once = nfc(whole.answer);
  check(is_utf8(once) && nfc(once) == once, "normalizing twice changes the text");
  return 0;
}
