// From Oniguruma's regular expressions to PCRE2's.
#include <cctype>

#include "base/error.h"
#include "text/split_pattern.h"
#include "text/unicode_versions.h"

namespace r1v {
namespace {

constexpr char kSpaces[] =
    "\\t-\\r\\x20\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}\\x{205F}\\x{3000}";
constexpr std::string_view kGroups[] = {"(?:", "(?i:", "(?=", "(?!"};

class Translator {
 public:
  Translator(std::string_view pattern, const std::string& where) : pattern_(pattern), where_(where) {}

  std::string run() {
    while (at_ < pattern_.size()) {
      switch (pattern_[at_]) {
        case '\\': escape(false); break;
        case '[': character_class(); break;
        case '(': group(); break;
        case '{': repetition(); break;
        case '.':
        case '^':
        case '$': refuse(1);
        default: copy(1);
      }
    }
    return std::move(out_);
  }

 private:
  char ahead(size_t offset) const { return at_ + offset < pattern_.size() ? pattern_[at_ + offset] : '\0'; }
  bool starts_with(std::string_view text) const { return pattern_.substr(at_, text.size()) == text; }

  void copy(size_t length) {
    out_ += pattern_.substr(at_, length);
    at_ += length;
  }

  [[noreturn]] void refuse(size_t length) const {
    throw Error(
        Code::kBundle, "The tokenizer's split pattern holds something that is not supported.",
        {where_, "literal text, classes, \\s \\S \\p{L} \\p{N}, groups, lookahead and repetitions",
         std::string(pattern_.substr(at_, length)) + ", byte " + std::to_string(at_), "use the Python package"});
  }

  void escape(bool in_class) {
    const char next = ahead(1);
    const bool is_mark = std::ispunct(static_cast<unsigned char>(next)) != 0;
    if (next == 'r' || next == 'n' || next == 't' || is_mark) return copy(2);
    if (next == 's') return put(kSpaces, "", in_class, 2);
    if (next == 'S' && !in_class) return put(kSpaces, "^", false, 2);
    if (starts_with("\\p{L}")) return put(std::string("\\p{L}") + kNewLetters, "", in_class, 5);
    if (starts_with("\\p{N}")) return put(std::string("\\p{N}") + kNewNumbers, "", in_class, 5);
    refuse(next == 'p' || next == 'P' ? 5 : 2);
  }

  void put(const std::string& characters, const char* negation, bool in_class, size_t length) {
    out_ += in_class ? characters : "[" + std::string(negation) + characters + "]";
    at_ += length;
  }

  void character_class() {
    copy(ahead(1) == '^' ? 2 : 1);
    if (ahead(0) == ']') refuse(1);  // Empty for the one, a character for the other.
    bool after_set = false, after_dash = false;
    while (ahead(0) != ']') {
      const bool is_escape = ahead(0) == '\\';
      if (at_ >= pattern_.size()) refuse(1);
      if (ahead(0) == '[' || starts_with("&&") || (ahead(0) == '-' && after_set)) refuse(2);
      const bool is_set = is_escape && std::isalpha(static_cast<unsigned char>(ahead(1))) != 0;
      if (is_set && after_dash) refuse(2);
      after_set = is_set;
      after_dash = ahead(0) == '-';
      if (is_escape) {
        escape(true);
      } else {
        copy(1);
      }
    }
    copy(1);
  }

  void group() {
    if (ahead(1) == '*') refuse(2);  // A verb of PCRE2.
    if (ahead(1) != '?') return copy(1);
    if (starts_with("(?i:")) check_caseless();
    for (const std::string_view opening : kGroups) {
      if (starts_with(opening)) return copy(opening.size());
    }
    refuse(4);
  }

  // Alternatives of plain text only, without what Oniguruma also finds as one letter: "ss" is the German sharp s.
  void check_caseless() const {
    const std::string_view content = pattern_.substr(at_ + 4, pattern_.find(')', at_) - at_ - 4);
    std::string lower;
    for (const char letter : content) lower += static_cast<char>(letter >= 'A' && letter <= 'Z' ? letter + 32 : letter);
    bool is_plain = lower.find_first_not_of("abcdefghijklmnopqrstuvwxyz'| ") == std::string::npos;
    for (const char* pair : {"ss", "st", "ff", "fi", "fl"})
      is_plain = is_plain && lower.find(pair) == std::string::npos;
    if (!is_plain) refuse(content.size() + 5);
  }

  // {2}, {1,3} or {1,}; what may follow it means other things to the two.
  void repetition() {
    size_t length = 1;
    while (std::isdigit(static_cast<unsigned char>(ahead(length))) != 0) ++length;
    if (length == 1) refuse(2);
    if (ahead(length) == ',') ++length;
    while (std::isdigit(static_cast<unsigned char>(ahead(length))) != 0) ++length;
    if (ahead(length) != '}') refuse(length + 1);
    const char next = ahead(length + 1);
    if (next == '?' || next == '+' || next == '*' || next == '{') refuse(length + 2);
    copy(length + 1);
  }

  std::string_view pattern_;
  const std::string& where_;
  std::string out_;
  size_t at_ = 0;
};

}  // namespace

std::string to_pcre2(std::string_view pattern, const std::string& where) { return Translator(pattern, where).run(); }

}  // namespace r1v
