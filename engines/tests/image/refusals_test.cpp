// Files that are no image that can be used: each an r1v::Error that says why.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <zlib.h>

#include <fstream>

#include "image/exif.h"
#include "image/load_image.h"
#include "image/png_text.h"

namespace r1v {
namespace {

std::string u32(uint32_t value) {
  std::string bytes;
  for (int shift = 24; shift >= 0; shift -= 8) bytes += static_cast<char>(value >> shift);
  return bytes;
}

std::string chunk(const std::string& name, const std::string& body) {
  const std::string content = name + body;
  const auto crc = crc32(0, reinterpret_cast<const Bytef*>(content.data()), static_cast<uInt>(content.size()));
  return u32(static_cast<uint32_t>(body.size())) + content + u32(static_cast<uint32_t>(crc));
}

std::string deflated(const std::string& data) {
  uLongf size = compressBound(data.size());
  std::string packed(size, '\0');
  compress(reinterpret_cast<Bytef*>(packed.data()), &size, reinterpret_cast<const Bytef*>(data.data()), data.size());
  packed.resize(size);
  return packed;
}

// An RGB PNG of any claimed size with these rows, each with its filter's kind.
std::string png(uint32_t width, uint32_t height, const std::string& rows, const std::string& before = "") {
  return "\x89PNG\r\n\x1a\n" + chunk("IHDR", u32(width) + u32(height) + std::string("\x08\x02\0\0\0", 5)) + before +
         chunk("IDAT", deflated(rows)) + chunk("IEND", "");
}

Pixels load(const std::string& data, const ImageLimits& limits = {}) {
  return load_image({reinterpret_cast<const uint8_t*>(data.data()), data.size()}, ImagePolicy::kAsDisplayed, limits);
}

std::string refusal(const std::string& data, const ImageLimits& limits = {}) {
  try {
    load(data, limits);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::kInput);
    return error.what();
  }
  return "accepted";
}

const std::string kRow("\0\1\2\3", 4);

TEST(Refusals, AWholePngIsNone) {
  const Pixels image = load(png(1, 1, kRow));
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(image.row(0)), 3), "\1\2\3");
}

TEST(Refusals, NameWhatIsNoImage) {
  EXPECT_NE(refusal("").find("an empty file"), std::string::npos);
  EXPECT_NE(refusal("not an image").find("not an image of a known format"), std::string::npos);
  EXPECT_NE(refusal("GIF89a...").find("GIF, BMP or TIFF"), std::string::npos);
  EXPECT_NE(refusal("RIFF....WEBPVP9 ").find("not an image"), std::string::npos);
}

TEST(Refusals, OfSizesComeBeforeTheDecoding) {
  for (const auto& [width, height] :
       {std::pair<uint32_t, uint32_t>{8001, 10000}, {65536, 1}, {1, 80000000}, {0xffffffff, 0xffffffff}}) {
    EXPECT_NE(refusal(png(width, height, kRow)).find("too large"), std::string::npos) << width << " x " << height;
  }
  EXPECT_NE(refusal(png(0, 5, kRow)).find("no pixels"), std::string::npos);
  EXPECT_NE(refusal(png(2, 1, kRow), {1, 65535}).find("too large"), std::string::npos);
}

// As Pillow, a PNG is taken once its last row is there: neither the checksum of its data nor its last chunk is needed.
TEST(Refusals, OfEveryLengthThatCutsOffRows) {
  const std::string whole = png(2, 2, std::string("\0\1\2\3\4\5\6\0\1\2\3\4\5\6", 14));
  const size_t rows_end = whole.size() - 12 - 4 - 4;  // before the last chunk and two checksums
  for (size_t length = 0; length < rows_end; ++length) {
    EXPECT_TRUE(refusal(whole.substr(0, length)) != "accepted" || length + 2 >= rows_end) << length;
  }
  EXPECT_EQ(refusal(whole.substr(0, whole.size() - 12)), "accepted");
}

TEST(Refusals, OfUnknownFiltersAndMissingRows) {
  EXPECT_NE(refusal(png(1, 1, "\5\1\2\3")).find("unknown filter"), std::string::npos);
  EXPECT_NE(refusal(png(1, 1, std::string("\0\1\2", 3))).find("cut off"), std::string::npos);
}

// A second header would make room for a frame that the image has not.
TEST(Refusals, OfFramesBeyondTheImage) {
  const std::string header = std::string("\x08\x02\0\0\0", 5);
  const std::string frame = u32(0) + u32(60) + u32(50) + u32(3) + u32(4) + std::string(6, '\0');
  const std::string rows = deflated(std::string(50 * 181, '\0'));
  const std::string start = "\x89PNG\r\n\x1a\n" + chunk("IHDR", u32(1) + u32(1) + header) +
                            chunk("acTL", u32(1) + u32(0)) + chunk("IDAT", deflated(kRow));
  const std::string end = chunk("fcTL", frame) + chunk("fdAT", u32(1) + rows) + chunk("IEND", "");
  EXPECT_NE(refusal(start + end).find("beyond the canvas"), std::string::npos);
  EXPECT_NE(refusal(start + chunk("IHDR", u32(100) + u32(100) + header) + end).find("second header"),
            std::string::npos);
  const std::string larger = "\x89PNG\r\n\x1a\n" + chunk("IHDR", u32(100) + u32(100) + header) + chunk("fcTL", frame) +
                             chunk("IHDR", u32(2) + u32(2) + header) + chunk("IDAT", rows);
  EXPECT_NE(refusal(larger).find("beyond the canvas"), std::string::npos);
}

TEST(Refusals, OfTextsThatInflateTooFar) {
  const std::string bomb = chunk("zTXt", std::string("k\0\0", 3) + deflated(std::string(2 << 20, 'a')));
  EXPECT_NE(refusal(png(1, 1, kRow, bomb)).find("too large"), std::string::npos);
}

TEST(Refusals, OfFilesNameThem) {
  const std::filesystem::path folder = std::filesystem::path(::testing::TempDir()) / "image-refusals";
  std::filesystem::create_directories(folder);
  std::ofstream(folder / "notes.png") << "notes";
  for (const char* name : {"notes.png", "missing.png", "."}) {
    try {
      load_image(folder / name, ImagePolicy::kAsDisplayed);
      ADD_FAILURE() << name;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::kInput);
      EXPECT_NE(std::string(error.what()).find(folder.string()), std::string::npos) << error.what();
    }
  }
  std::filesystem::remove_all(folder);
}

TEST(Orientation, OfDamagedMetadataIsThatOfTheStoredRows) {
  for (const std::string& exif : {std::string("Exif\0\0garbage", 13), std::string("Exif\0\0MM\0*\xff\xff\xff\xff", 14),
                                  std::string("Exif\0\0", 6), std::string("II*\0\x08\0\0\0\xff\xff", 10)}) {
    EXPECT_EQ(read_orientation(exif, ""), 1);
  }
}

TEST(Orientation, IsReadOfExifAndElseOfXmp) {
  const std::string exif("MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0", 26);
  EXPECT_EQ(read_orientation(exif, "tiff:Orientation=\"3\""), 6);
  EXPECT_EQ(read_orientation("", "<x tiff:Orientation=\"3\">"), 3);
  EXPECT_EQ(read_orientation("", "<tiff:Orientation>8</tiff:Orientation>"), 8);
  EXPECT_EQ(read_orientation("", "tiff:Orientation"), 1);
}

TEST(Texts, OfPngAreParsed) {
  EXPECT_EQ(raw_profile("\nexif\n 4\n4578\n69 66\n"), "Exif");
  EXPECT_FALSE(raw_profile("\nexif\n 4\n4x"));
  EXPECT_EQ(inflate_text(deflated("abc")).text, "abc");
  EXPECT_TRUE(inflate_text("abc").is_damaged);
  EXPECT_EQ(parse_international_text(std::string("k\0\0\0en\0t\0text", 13))->text, "text");
  EXPECT_FALSE(parse_international_text("k"));
}

}  // namespace
}  // namespace r1v
