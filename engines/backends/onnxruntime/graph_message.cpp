#include "backends/onnxruntime/graph_message.h"

#include <cstdint>
#include <iterator>
#include <optional>

#include "base/error.h"

namespace r1v::ort {
namespace {

using Renamed = std::function<std::string(const std::string&)>;

// Numbers of fields, from onnx.proto of ONNX, where they never change: ModelProto.graph, GraphProto.initializer,
// TensorProto.external_data.
constexpr uint64_t kPath[] = {7, 5, 13};
// Of StringStringEntryProto.
constexpr uint64_t kKey = 1, kValue = 2;
constexpr char kLocation[] = "location";

constexpr uint64_t kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5;  // kinds of a field

struct Field {
  uint64_t number, kind;
  std::string_view whole;    // with its head
  std::string_view content;  // of bytes
};

// The fields of a message, in their order.
class FieldReader {
 public:
  FieldReader(std::string_view message, const std::string& where) : message_(message), where_(where) {}

  // Nothing at the end.
  std::optional<Field> next() {
    if (at_ == message_.size()) return std::nullopt;
    const size_t start = at_;
    const uint64_t head = varint();
    Field field{head >> 3, head & 7, {}, {}};
    switch (field.kind) {
      case kVarint: varint(); break;
      case kFixed64: take(8); break;
      case kBytes: field.content = take(varint()); break;
      case kFixed32: take(4); break;
      default: fail();
    }
    field.whole = message_.substr(start, at_ - start);
    return field;
  }

 private:
  uint64_t varint() {
    uint64_t value = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<unsigned char>(take(1)[0]);
      value |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if (byte < 0x80) return value;
    }
    fail();
  }

  std::string_view take(uint64_t size) {
    if (size > message_.size() - at_) fail();
    at_ += static_cast<size_t>(size);
    return message_.substr(at_ - static_cast<size_t>(size), static_cast<size_t>(size));
  }

  [[noreturn]] void fail() const {
    throw Error(Code::kBundle, "A graph is damaged.",
                {where_ + ", byte " + std::to_string(at_) + " of a message of " + std::to_string(message_.size()),
                 "an ONNX file", "", "fetch the bundle again, or build it again"});
  }

  std::string_view message_;
  const std::string& where_;
  size_t at_ = 0;
};

void append_varint(std::string* message, uint64_t value) {
  for (; value >= 0x80; value >>= 7) message->push_back(static_cast<char>((value & 0x7f) | 0x80));
  message->push_back(static_cast<char>(value));
}

void append_bytes(std::string* message, uint64_t number, const std::string& content) {
  append_varint(message, number << 3 | kBytes);
  append_varint(message, content.size());
  *message += content;
}

std::string with_location(std::string_view entry, const Renamed& renamed, const std::string& where) {
  std::string_view key, value;
  FieldReader fields(entry, where);
  while (const std::optional<Field> field = fields.next()) {
    if (field->kind == kBytes && field->number == kKey) key = field->content;
    if (field->kind == kBytes && field->number == kValue) value = field->content;
  }
  if (key != kLocation) return std::string(entry);
  std::string changed;
  append_bytes(&changed, kKey, kLocation);
  append_bytes(&changed, kValue, renamed(std::string(value)));
  return changed;
}

// A message at some depth of kPath.
std::string rewritten(std::string_view message, size_t depth, const Renamed& renamed, const std::string& where) {
  if (depth == std::size(kPath)) return with_location(message, renamed, where);
  std::string changed;
  FieldReader fields(message, where);
  while (const std::optional<Field> field = fields.next()) {
    if (field->kind == kBytes && field->number == kPath[depth]) {
      append_bytes(&changed, field->number, rewritten(field->content, depth + 1, renamed, where));
    } else {
      changed += field->whole;
    }
  }
  return changed;
}

}  // namespace

std::string with_locations(std::string_view model, const Renamed& renamed, const std::string& where) {
  return rewritten(model, 0, renamed, where);
}

}  // namespace r1v::ort
