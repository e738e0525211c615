// The regular expressions that cut a text into the words of a byte-level BPE.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace r1v {

// Written for Oniguruma in tokenizer.json, run by PCRE2. What both read alike is taken, and `\s`, `\p{L}` and `\p{N}`
// with the characters of Oniguruma; everything else is refused. May be shared between threads.
class SplitPattern {
 public:
  // `where` names the field. Throws kBundle: the pattern is malformed, holds something that is not supported, or
  // matches the empty text.
  SplitPattern(std::string_view pattern, const std::string& where);

  // Appends the matches in a text that is UTF-8, and what lies between them, in order; without `gaps` only the matches.
  // Throws kInput: the search takes too long.
  void split(std::string_view text, bool gaps, std::vector<std::string_view>* pieces) const;

 private:
  std::shared_ptr<void> code_;
};

// The same pattern as PCRE2 reads it. Throws kBundle, naming what is not supported.
std::string to_pcre2(std::string_view pattern, const std::string& where);

}  // namespace r1v
