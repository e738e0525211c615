#include "image/exif.h"

#include <cstdint>

#include "base/hex_digit.h"

namespace r1v {
namespace {

constexpr uint16_t kOrientation = 0x0112;

enum class Tag { kAbsent, kFound, kDamaged };

// TIFF's numbers, from a place that may lie beyond the end.
class TiffReader {
 public:
  TiffReader(std::string_view data, bool big_endian) : data_(data), big_endian_(big_endian) {}

  bool has(uint64_t offset, uint64_t size) const { return offset <= data_.size() && size <= data_.size() - offset; }
  uint64_t number(uint64_t offset, int bytes) const {
    uint64_t value = 0;
    for (int i = 0; i < bytes; ++i) {
      const int at = big_endian_ ? i : bytes - 1 - i;
      value = value << 8 | static_cast<unsigned char>(data_[static_cast<size_t>(offset) + static_cast<size_t>(at)]);
    }
    return value;
  }

 private:
  std::string_view data_;
  bool big_endian_;
};

// Bytes of a value of a TIFF type; 0 for types that Pillow does not know.
int type_size(uint64_t type) {
  switch (type) {
    case 1:
    case 2:
    case 6:
    case 7: return 1;
    case 3:
    case 8: return 2;
    case 4:
    case 9:
    case 11:
    case 13: return 4;
    case 5:
    case 10:
    case 12:
    case 16: return 8;
    default: return 0;
  }
}

bool is_whole_number(uint64_t type) {
  return type == 3 || type == 4 || type == 6 || type == 8 || type == 9 || type == 13 || type == 16;
}

// The value of the last entry for the orientation in the first directory. Entries after one that lies outside of the
// data are not read.
Tag find_orientation(const TiffReader& tiff, uint64_t directory, int* orientation) {
  Tag found = Tag::kAbsent;
  if (!tiff.has(directory, 2)) return found;
  const uint64_t count = tiff.number(directory, 2);
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t entry = directory + 2 + 12 * i;
    if (!tiff.has(entry, 12)) break;
    const uint64_t type = tiff.number(entry + 2, 2), values = tiff.number(entry + 4, 4);
    const int size = type_size(type);
    if (size == 0 || values == 0) continue;
    const uint64_t bytes = values * static_cast<uint64_t>(size);
    const uint64_t place = bytes > 4 ? tiff.number(entry + 8, 4) : entry + 8;
    if (bytes > 4 && !tiff.has(place, bytes)) break;
    if (tiff.number(entry, 2) != kOrientation) continue;
    found = Tag::kFound;
    const uint64_t value = is_whole_number(type) ? tiff.number(place, size) : 1;
    *orientation = value >= 1 && value <= 8 ? static_cast<int>(value) : 1;
  }
  return found;
}

Tag read_exif(std::string_view exif, int* orientation) {
  constexpr std::string_view kPrefix("Exif\0\0", 6);
  while (exif.substr(0, kPrefix.size()) == kPrefix) exif.remove_prefix(kPrefix.size());
  if (exif.empty()) return Tag::kAbsent;
  if (exif.size() < 8) return Tag::kDamaged;
  const std::string_view magic = exif.substr(0, 4);
  bool known = false;
  for (const std::string_view prefix :
       {std::string_view("MM\0*", 4), std::string_view("II*\0", 4), std::string_view("MM*\0", 4),
        std::string_view("II\0*", 4), std::string_view("MM\0+", 4)}) {
    known = known || magic == prefix;
  }
  if (!known) return Tag::kDamaged;
  const TiffReader tiff(exif, magic[0] == 'M');
  return find_orientation(tiff, tiff.number(4, 4), orientation);
}

// The digit of the first `tiff:Orientation="6` or `tiff:Orientation>6`.
int xmp_orientation(std::string_view xmp) {
  constexpr std::string_view kName = "tiff:Orientation";
  for (size_t at = xmp.find(kName); at != std::string_view::npos; at = xmp.find(kName, at + 1)) {
    std::string_view rest = xmp.substr(at + kName.size());
    if (rest.substr(0, 2) == "=\"") {
      rest.remove_prefix(2);
    } else if (rest.substr(0, 1) == ">") {
      rest.remove_prefix(1);
    } else {
      continue;
    }
    if (!rest.empty() && rest[0] >= '0' && rest[0] <= '9') return rest[0] - '0';
  }
  return 1;
}

bool is_space(char character) { return character == ' ' || (character >= '\t' && character <= '\r'); }

}  // namespace

int read_orientation(std::string_view exif, std::string_view xmp) {
  int orientation = 1;
  if (read_exif(exif, &orientation) == Tag::kAbsent) orientation = xmp_orientation(xmp);
  return orientation;
}

std::optional<std::string> raw_profile(std::string_view text) {
  size_t start = 0;
  for (int line = 0; line < 3; ++line) {
    const size_t end = text.find('\n', start);
    if (end == std::string_view::npos) return std::string();
    start = end + 1;
  }
  std::string joined, bytes;
  for (const char character : text.substr(start)) {
    if (character != '\n') joined += character;
  }
  for (size_t i = 0; i < joined.size();) {
    if (is_space(joined[i])) {
      ++i;
      continue;
    }
    const int high = hex_digit(joined[i]), low = i + 1 < joined.size() ? hex_digit(joined[i + 1]) : -1;
    if (high < 0 || low < 0) return std::nullopt;
    bytes += static_cast<char>(high << 4 | low);
    i += 2;
  }
  return bytes;
}

}  // namespace r1v
