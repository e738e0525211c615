#include "backends/onnxruntime/graph_message.h"

#include <iterator>
#include <optional>

#include "base/protobuf.h"

namespace r1v::ort {
namespace {

using protobuf::Field, protobuf::FieldReader, protobuf::kBytes;
using Renamed = std::function<std::string(const std::string&)>;

// Numbers of fields, from onnx.proto of ONNX, where they never change: ModelProto.graph, GraphProto.initializer,
// TensorProto.external_data.
constexpr uint64_t kPath[] = {7, 5, 13};
// Of StringStringEntryProto.
constexpr uint64_t kKey = 1, kValue = 2;
// Of TensorProto.
constexpr uint64_t kDataType = 2;
constexpr char kLocation[] = "location";

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

// Calls `use` with each message at a depth of kPath.
template <typename Use>
void visit(std::string_view message, size_t depth, size_t wanted, const std::string& where, const Use& use) {
  if (depth == wanted) return use(message);
  FieldReader fields(message, where);
  while (const std::optional<Field> field = fields.next()) {
    if (field->kind == kBytes && field->number == kPath[depth]) visit(field->content, depth + 1, wanted, where, use);
  }
}

}  // namespace

std::set<uint64_t> initializer_types(std::string_view model, const std::string& where) {
  constexpr size_t kInitializers = 2;  // depth of kPath
  std::set<uint64_t> types;
  visit(model, 0, kInitializers, where, [&](std::string_view tensor) {
    FieldReader fields(tensor, where);
    while (const std::optional<Field> field = fields.next()) {
      if (field->kind == protobuf::kVarint && field->number == kDataType) types.insert(field->value);
    }
  });
  return types;
}

std::string with_locations(std::string_view model, const Renamed& renamed, const std::string& where) {
  return rewritten(model, 0, renamed, where);
}

}  // namespace r1v::ort
