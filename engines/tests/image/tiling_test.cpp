#include "image/tiling.h"

#include <gtest/gtest.h>

#include "image/load_image.h"

namespace r1v {
namespace {

Json document() {
  return {{"tile_size", 448},
          {"dynamic", true},
          {"min_tiles", 1},
          {"max_tiles", 2},
          {"thumbnail", true},
          {"resize", "bicubic"},
          {"max_tiles_per_image", 3},
          {"grids", {{{"cols", 1}, {"rows", 1}}, {{"cols", 1}, {"rows", 2}}, {{"cols", 2}, {"rows", 1}}}},
          {"mean", {0.485, 0.456, 0.406}},
          {"std", {0.229, 0.224, 0.225}},
          {"max_pixels", 80000000},
          {"max_side", 65535}};
}

Tiling parse(const Json& json) { return Tiling::from_json(Fields(json, "pipeline.json: tiling")); }

TEST(Tiling, IsReadFromPipelineJson) {
  const Tiling tiling = parse(document());
  EXPECT_EQ(tiling.tile_size, 448);
  EXPECT_EQ(tiling.grids.size(), 3u);
  EXPECT_EQ(tiling.std[2], 0.225f);
  EXPECT_EQ(tile_count(1000, 1000, tiling), 1u);
  EXPECT_EQ(tile_count(2000, 1000, tiling), 3u);
  EXPECT_EQ(choose_grid(1, 1000, tiling).rows, 2);
}

TEST(Tiling, OfAMalformedDocumentNamesTheField) {
  const std::vector<std::pair<std::string, Json>> changes = {{"tile_size", 0},
                                                             {"tile_size", 4.5},
                                                             {"thumbnail", 1},
                                                             {"grids", Json::array()},
                                                             {"grids", {{{"cols", 0}, {"rows", 1}}}},
                                                             {"mean", {1, 2}},
                                                             {"std", {0, 1, 1}},
                                                             {"grids", {{{"cols", 4096}, {"rows", 4096}}}},
                                                             {"max_side", 1 << 20},
                                                             {"resize", "bilinear"},
                                                             {"max_pixels", -1},
                                                             {"max_tiles_per_image", 0},
                                                             {"mean", "imagenet"},
                                                             {"tile_size", nullptr}};
  for (const auto& [field, value] : changes) {
    Json json = document();
    json[field] = value;
    try {
      parse(json);
      ADD_FAILURE() << field << " " << value;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::kBundle);
      EXPECT_NE(std::string(error.what()).find(field), std::string::npos) << error.what();
    }
  }
}

TEST(ImagePolicy, IsReadFromPipelineJson) {
  const Json displayed = {{"image_policy", "as_displayed"}}, other = {{"image_policy", "sepia"}};
  EXPECT_EQ(parse_image_policy(Fields(displayed, "pipeline.json")), ImagePolicy::kAsDisplayed);
  EXPECT_THROW(parse_image_policy(Fields(other, "pipeline.json")), Error);
}

}  // namespace
}  // namespace r1v
