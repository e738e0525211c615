#include "image/tiling.h"

#include <cmath>
#include <limits>

namespace r1v {
namespace {

constexpr int kMaxSide = 65'535;  // of an image, a tile and a grid in tiles
constexpr int kMaxTiles = 4096;

std::array<float, 3> parse_channels(const Fields& tiling, const std::string& name) {
  const Json& values = tiling.array(name);
  const std::string field = tiling.where() + "." + name;
  if (values.size() != 3) throw_field(field, "3 numbers", values);
  std::array<float, 3> channels{};
  for (size_t i = 0; i < 3; ++i) {
    if (!values[i].is_number()) throw_field(field, "3 numbers", values);
    channels[i] = static_cast<float>(values[i].get<double>());
    if (!std::isfinite(channels[i]) || (name == "std" && channels[i] == 0)) throw_field(field, "3 numbers", values);
  }
  return channels;
}

TileGrid parse_grid(const Json& value, const std::string& where, int max_tiles) {
  const Fields grid(value, where);
  const TileGrid parsed = {static_cast<int>(grid.integer("cols", 1, max_tiles)),
                           static_cast<int>(grid.integer("rows", 1, max_tiles))};
  if (parsed.cols * parsed.rows > max_tiles)
    throw_field(where, "at most " + std::to_string(max_tiles) + " tiles", value);
  return parsed;
}

}  // namespace

Tiling Tiling::from_json(const Fields& tiling) {
  Tiling parsed;
  parsed.tile_size = static_cast<int>(tiling.integer("tile_size", 1, kMaxSide));
  parsed.thumbnail = tiling.flag("thumbnail");
  parsed.max_tiles_per_image = static_cast<int>(tiling.integer("max_tiles_per_image", 1, kMaxTiles));
  if (tiling.has("resize") && tiling.text("resize") != "bicubic") {
    throw_field(tiling.where() + ".resize", "bicubic", tiling.at("resize"));
  }
  const Json& grids = tiling.array("grids");
  const std::string field = tiling.where() + ".grids";
  if (grids.empty()) throw_field(field, "at least one grid", grids);
  for (const Json& grid : grids) parsed.grids.push_back(parse_grid(grid, field, kMaxTiles));
  parsed.mean = parse_channels(tiling, "mean");
  parsed.std = parse_channels(tiling, "std");
  parsed.limits.max_pixels = tiling.integer("max_pixels", 1, int64_t{1} << 40);
  parsed.limits.max_side = tiling.integer("max_side", 1, kMaxSide);
  return parsed;
}

TileGrid choose_grid(int width, int height, const Tiling& tiling) {
  const double aspect_ratio = static_cast<double>(width) / height;
  const double pixels = static_cast<double>(width) * height;
  const double tile_pixels = static_cast<double>(tiling.tile_size) * tiling.tile_size;
  double nearest = std::numeric_limits<double>::infinity();
  TileGrid best;
  for (const TileGrid& grid : tiling.grids) {
    const double distance = std::fabs(aspect_ratio - static_cast<double>(grid.cols) / grid.rows);
    const bool fills_grid = pixels > 0.5 * tile_pixels * grid.cols * grid.rows;
    if (distance < nearest || (distance == nearest && fills_grid)) {
      nearest = distance;
      best = grid;
    }
  }
  return best;
}

size_t tile_count(int width, int height, const Tiling& tiling) {
  const TileGrid grid = choose_grid(width, height, tiling);
  const size_t tiles = static_cast<size_t>(grid.cols) * static_cast<size_t>(grid.rows);
  return tiles + (tiling.thumbnail && tiles > 1 ? 1 : 0);
}

}  // namespace r1v
