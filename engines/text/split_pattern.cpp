#include "text/split_pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "base/error.h"

namespace r1v {
namespace {

constexpr size_t kMaxPatternBytes = 10000;
constexpr uint32_t kMatchLimit = 10'000'000;  // steps of one search; a run of white space takes one for each character
constexpr uint32_t kHeapLimitKiB = 1u << 16;

template <typename Pointer, typename Free>
auto owned(Pointer* pointer, Free free) {
  if (pointer == nullptr) throw std::bad_alloc();
  return std::unique_ptr<Pointer, Free>(pointer, free);
}

[[noreturn]] void throw_pattern(const std::string& where, const std::string& found) {
  throw Error(Code::kBundle, "The tokenizer's split pattern cannot be used.",
              {where, "a regular expression that matches no empty text", found, "fetch the bundle again"});
}

std::string pcre2_message(int code) {
  PCRE2_UCHAR text[256];
  pcre2_get_error_message(code, text, sizeof text);
  return reinterpret_cast<const char*>(text);
}

}  // namespace

SplitPattern::SplitPattern(std::string_view pattern, const std::string& where) {
  if (pattern.size() > kMaxPatternBytes) throw_pattern(where, std::to_string(pattern.size()) + " bytes");
  const std::string translated = to_pcre2(pattern, where);
  int error = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                                   PCRE2_UTF | PCRE2_NEVER_BACKSLASH_C, &error, &offset, nullptr);
  if (code == nullptr) throw_pattern(where, pcre2_message(error));
  code_ = std::shared_ptr<void>(code, [](void* held) { pcre2_code_free(static_cast<pcre2_code*>(held)); });
  uint32_t matches_empty = 0;
  pcre2_pattern_info(code, PCRE2_INFO_MATCHEMPTY, &matches_empty);
  if (matches_empty != 0) throw_pattern(where, std::string(pattern));
}

void SplitPattern::split(std::string_view text, bool gaps, std::vector<std::string_view>* pieces) const {
  const auto* code = static_cast<const pcre2_code*>(code_.get());
  const auto match = owned(pcre2_match_data_create(1, nullptr), pcre2_match_data_free);
  const auto context = owned(pcre2_match_context_create(nullptr), pcre2_match_context_free);
  pcre2_set_match_limit(context.get(), kMatchLimit);
  pcre2_set_heap_limit(context.get(), kHeapLimitKiB);
  for (size_t at = 0; at < text.size();) {
    const int found = pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), at,
                                  PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY, match.get(), context.get());
    if (found == PCRE2_ERROR_NOMATCH) {
      if (gaps) pieces->push_back(text.substr(at));
      return;
    }
    if (found < 0) {
      throw Error(Code::kInput, "The text takes too long to be cut into words.",
                  {"byte " + std::to_string(at), "", pcre2_message(found), "use a shorter text"});
    }
    const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(match.get());
    if (gaps && bounds[0] > at) pieces->push_back(text.substr(at, bounds[0] - at));
    pieces->push_back(text.substr(bounds[0], bounds[1] - bounds[0]));
    at = bounds[1];
  }
}

}  // namespace r1v
