// Fields of a protobuf message, read without protobuf's library: an ONNX file is one.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace r1v::protobuf {

// Kinds of a field.
inline constexpr uint64_t kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5;

struct Field {
  uint64_t number, kind;
  uint64_t value;            // of a varint
  std::string_view content;  // of bytes
  std::string_view whole;    // with its head
};

// The fields of a message, in their order.
class FieldReader {
 public:
  // `where` names the file; it must outlive the reader.
  FieldReader(std::string_view message, const std::string& where) : message_(message), where_(where) {}

  // Nothing at the end. Throws kBundle: this is no protobuf message.
  std::optional<Field> next();

  // The next number of a packed list.
  uint64_t varint();
  bool at_end() const { return at_ == message_.size(); }

 private:
  std::string_view take(uint64_t size);
  [[noreturn]] void fail() const;

  std::string_view message_;
  const std::string& where_;
  size_t at_ = 0;
};

}  // namespace r1v::protobuf
