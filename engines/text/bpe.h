// Byte pair encoding: the bytes of a word become tokens, and neighbors are joined by the merges, the first ones first.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace r1v {

// A pair of neighboring tokens that becomes one.
struct Merge {
  uint32_t left, right;
  uint32_t rank;
  uint32_t joined;
};

// Merges by their pair: a hash table with open addressing.
class MergeTable {
 public:
  MergeTable() : MergeTable(std::vector<Merge>()) {}
  // Of two merges of one pair the later counts.
  explicit MergeTable(const std::vector<Merge>& merges);

  // Null if the two are not joined.
  const Merge* find(uint32_t left, uint32_t right) const;

 private:
  size_t slot(uint32_t left, uint32_t right) const;

  std::vector<Merge> slots_;  // a power of two; `rank` is kFree where there is none
};

struct Bpe {
  std::array<uint32_t, 256> byte_tokens{};
  MergeTable merges;
  // Words that are tokens as they are, whatever the merges; empty unless the model says `ignore_merges`.
  std::unordered_map<std::string, uint32_t> words;

  // Appends the tokens of a word's bytes, in n log n time.
  void encode(const std::string& word, std::vector<int64_t>* ids) const;
};

}  // namespace r1v
