#include "base/protobuf.h"

#include "base/error.h"

namespace r1v::protobuf {

std::optional<Field> FieldReader::next() {
  if (at_end()) return std::nullopt;
  const size_t start = at_;
  const uint64_t head = varint();
  Field field{head >> 3, head & 7, 0, {}, {}};
  switch (field.kind) {
    case kVarint: field.value = varint(); break;
    case kFixed64: take(8); break;
    case kBytes: field.content = take(varint()); break;
    case kFixed32: take(4); break;
    default: fail();
  }
  field.whole = message_.substr(start, at_ - start);
  return field;
}

uint64_t FieldReader::varint() {
  uint64_t value = 0;
  for (unsigned shift = 0; shift < 64; shift += 7) {
    const auto byte = static_cast<unsigned char>(take(1)[0]);
    value |= static_cast<uint64_t>(byte & 0x7f) << shift;
    if (byte < 0x80) return value;
  }
  fail();
}

std::string_view FieldReader::take(uint64_t size) {
  if (size > message_.size() - at_) fail();
  at_ += static_cast<size_t>(size);
  return message_.substr(at_ - static_cast<size_t>(size), static_cast<size_t>(size));
}

void FieldReader::fail() const {
  throw Error(Code::kBundle, "A graph is damaged.",
              {where_ + ", byte " + std::to_string(at_) + " of a message of " + std::to_string(message_.size()),
               "an ONNX file", "", "fetch the bundle again, or build it again"});
}

}  // namespace r1v::protobuf
