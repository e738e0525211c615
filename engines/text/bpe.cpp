#include "text/bpe.h"

#include <queue>

namespace r1v {
namespace {

constexpr uint32_t kFree = UINT32_MAX;
constexpr size_t kNone = SIZE_MAX;

// A token in the word, in a list of those that are left.
struct Symbol {
  uint32_t id;
  size_t previous, next;
  bool joined_to_previous;
};

// Two neighbors that may be joined, by the first of them.
struct Candidate {
  uint32_t rank, joined;
  size_t position;

  bool operator<(const Candidate& other) const {  // The least rank, then the leftmost, is the top of a priority queue.
    return rank != other.rank ? rank > other.rank : position > other.position;
  }
};

class Word {
 public:
  Word(const Bpe& bpe, const std::string& bytes) : bpe_(bpe) {
    symbols_.reserve(bytes.size());
    for (size_t at = 0; at < bytes.size(); ++at) {
      const uint32_t id = bpe.byte_tokens[static_cast<unsigned char>(bytes[at])];
      symbols_.push_back({id, at == 0 ? kNone : at - 1, at + 1 == bytes.size() ? kNone : at + 1, false});
    }
    for (size_t at = 0; at + 1 < bytes.size(); ++at) push(at);
  }

  void join() {
    while (!queue_.empty()) {
      const Candidate best = queue_.top();
      queue_.pop();
      Symbol& left = symbols_[best.position];
      if (left.joined_to_previous || left.next == kNone) continue;
      Symbol& right = symbols_[left.next];
      const Merge* merge = bpe_.merges.find(left.id, right.id);
      if (merge == nullptr || merge->joined != best.joined) continue;  // One of the two has changed since.
      left.id = best.joined;
      right.joined_to_previous = true;
      left.next = right.next;
      if (left.next != kNone) symbols_[left.next].previous = best.position;
      if (left.previous != kNone) push(left.previous);
      push(best.position);
    }
  }

  void append_to(std::vector<int64_t>* ids) const {
    for (size_t at = 0; at != kNone && !symbols_.empty(); at = symbols_[at].next) ids->push_back(symbols_[at].id);
  }

 private:
  void push(size_t position) {
    const size_t next = symbols_[position].next;
    if (next == kNone) return;
    const Merge* merge = bpe_.merges.find(symbols_[position].id, symbols_[next].id);
    if (merge != nullptr) queue_.push({merge->rank, merge->joined, position});
  }

  const Bpe& bpe_;
  std::vector<Symbol> symbols_;
  std::priority_queue<Candidate> queue_;
};

}  // namespace

MergeTable::MergeTable(const std::vector<Merge>& merges) {
  size_t size = 2;
  while (size < 2 * merges.size()) size *= 2;
  slots_.assign(size, Merge{0, 0, kFree, 0});
  for (const Merge& merge : merges) slots_[slot(merge.left, merge.right)] = merge;
}

const Merge* MergeTable::find(uint32_t left, uint32_t right) const {
  const Merge& found = slots_[slot(left, right)];
  return found.rank == kFree ? nullptr : &found;
}

// Of the pair, or the free one where it would be.
size_t MergeTable::slot(uint32_t left, uint32_t right) const {
  const size_t mask = slots_.size() - 1;
  const uint64_t mixed = ((uint64_t{left} << 32) | right) * 0x9e3779b97f4a7c15u;
  size_t at = static_cast<size_t>(mixed >> 32) & mask;
  while (slots_[at].rank != kFree && (slots_[at].left != left || slots_[at].right != right)) at = (at + 1) & mask;
  return at;
}

void Bpe::encode(const std::string& word, std::vector<int64_t>* ids) const {
  if (const auto whole = words.find(word); whole != words.end()) {
    ids->push_back(whole->second);
    return;
  }
  Word symbols(*this, word);
  symbols.join();
  symbols.append_to(ids);
}

}  // namespace r1v
