// Images that our Python code cut into tiles: golden vectors of tests/engines/golden_image.py in R1V_GOLDEN_DIR/image.
#include <gtest/gtest.h>

#include <cstdlib>

#include "base/files.h"
#include "base/sha256.h"
#include "image/load_image.h"
#include "image/tiles.h"

namespace r1v {
namespace {

std::string digest(const void* data, size_t bytes) {
  Sha256 sha;
  sha.update(data, bytes);
  return sha.hex();
}

std::string rgb_digest(const Pixels& image) {
  std::string rgb;
  for (size_t i = 0; i < image.count(); ++i) {
    rgb.append(reinterpret_cast<const char*>(image.row(0) + Pixels::kBytes * i), 3);
  }
  return digest(rgb.data(), rgb.size());
}

// An empty text if the result is the expected one.
std::string difference(const std::filesystem::path& folder, const Json& test_case, const Tiling& tiling) {
  const Json& expected = test_case["expected"];
  const bool refused = expected.contains("refused");
  const ImagePolicy policy = parse_image_policy(Fields(Json{{"image_policy", test_case["policy"]}}, "case"));
  Pixels image;
  try {
    image = load_image(folder / test_case["file"].get<std::string>(), policy);
  } catch (const Error& error) {
    if (error.code() != Code::kInput) return std::string("another kind of error: ") + error.what();
    return refused ? "" : std::string("refused: ") + error.what();
  }
  if (refused) return "accepted, but Python says: " + expected["refused"].get<std::string>();
  if (image.width() != expected["width"] || image.height() != expected["height"]) return "another size";
  if (rgb_digest(image) != expected["rgb"]) return "other pixels";
  const PixelValues tiles = pixel_values(image, tiling, 3);
  if (tiles.tiles != expected["tiles"]) return "another number of tiles";
  if (digest(tiles.values.get(), tiles.count * sizeof(float)) != expected["pixel_values"]) return "other tiles";
  return "";
}

TEST(Vectors, OfPythonAreEqual) {
  const char* variable = std::getenv("R1V_GOLDEN_DIR");
  if (variable == nullptr) GTEST_SKIP() << "R1V_GOLDEN_DIR is not set: tests/engines runs this test";
  const std::filesystem::path folder = std::filesystem::path(variable) / "image";
  const Json document = parse_json(read_file(folder / "golden.json"), "golden.json");
  std::vector<Tiling> tilings;
  for (const Json& tiling : document["tilings"]) tilings.push_back(Tiling::from_json(Fields(tiling, "tiling")));
  const Json& cases = document["cases"];
  ASSERT_FALSE(cases.empty());
  for (const Json& test_case : cases) {
    const Tiling& tiling = tilings.at(test_case["tiling"].get<size_t>());
    EXPECT_EQ(difference(folder, test_case, tiling), "") << test_case["file"] << " " << test_case["policy"];
  }
  std::cout << cases.size() << " images compared\n";
}

}  // namespace
}  // namespace r1v
