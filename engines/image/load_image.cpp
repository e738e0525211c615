#include "image/load_image.h"

#include <string_view>

#include "base/files.h"
#include "image/image_policy.h"

namespace r1v {
namespace {

constexpr const char* kFormats = "JPEG, PNG or WebP";

bool begins(std::string_view data, std::string_view prefix) { return data.substr(0, prefix.size()) == prefix; }

[[noreturn]] void throw_unknown(std::string_view head, const std::string& where) {
  const bool known_to_python =
      begins(head, "GIF8") || begins(head, "BM") || begins(head, {"II*\0", 4}) || begins(head, {"MM\0*", 4});
  if (known_to_python) {
    throw Error(Code::kInput, "libr1v does not read images of this format.",
                {where, kFormats, "GIF, BMP or TIFF", "convert it to PNG first"});
  }
  throw Error(Code::kInput, "The file is not an image of a known format.",
              {where, kFormats, head.empty() ? "an empty file" : "a file that begins with " + std::string(head),
               "name another file, or convert it to PNG first"});
}

Raster decode(const EncodedImage& image, ImagePolicy policy, const ImageLimits& limits) {
  const std::string_view head(reinterpret_cast<const char*>(image.data), image.size < 16 ? image.size : 16);
  if (begins(head, "\xff\xd8\xff")) return decode_jpeg(image, limits);
  if (begins(head, {"\x89PNG\r\n\x1a\n", 8})) return decode_png(image, limits, policy == ImagePolicy::kAsDisplayed);
  const bool is_webp = begins(head, "RIFF") && head.size() == 16 && begins(head.substr(8), "WEBPVP8") &&
                       (head[15] == ' ' || head[15] == 'X' || head[15] == 'L');
  if (is_webp) return decode_webp(image, limits);
  throw_unknown(head, image.where);
}

}  // namespace

ImagePolicy parse_image_policy(const Fields& pipeline) {
  const std::string name = pipeline.text("image_policy");
  if (name == "as_displayed") return ImagePolicy::kAsDisplayed;
  if (name == "published") return ImagePolicy::kPublished;
  throw_field(pipeline.where() + ".image_policy", "as_displayed or published", Json(name));
}

Pixels load_image(const EncodedImage& image, ImagePolicy policy, const ImageLimits& limits) {
  if (image.size > kMaxImageBytes) {
    throw Error(Code::kInput, "The image is too large.",
                {image.where, "at most " + std::to_string(kMaxImageBytes) + " bytes", "", ""});
  }
  return to_rgb(decode(image, policy, limits), policy, image.where);
}

Pixels load_image(const std::filesystem::path& path, ImagePolicy policy, const ImageLimits& limits) {
  const std::string content = read_file(path, kMaxImageBytes, Code::kInput);
  return load_image({reinterpret_cast<const uint8_t*>(content.data()), content.size(), path.string()}, policy, limits);
}

}  // namespace r1v
