#include "image/tiles.h"

#include <algorithm>
#include <memory>
#include <system_error>
#include <thread>
#include <vector>

#include "base/cpus.h"
#include "image/resize.h"
#include "image/resize_kernels.h"

namespace r1v {
namespace {

constexpr int kMaxThreads = 8;                    // more gain little, and each has tables of its own
constexpr size_t kBandBytes = size_t{512} << 10;  // of an image that all resizes read while a cache holds them

// An image resized to a grid of tiles, of which some threads make some rows each.
class GridResize {
 public:
  GridResize(const Pixels& image, const Tiling& tiling, TileGrid grid, float* out)
      : lowered_(is_lowered_first(image, tiling.tile_size * grid.rows)
                     ? change_height(image, tiling.tile_size * grid.rows)
                     : Pixels()),
        image_(lowered_.width() > 0 ? lowered_ : image),
        tiling_(tiling),
        grid_(grid),
        out_(out),
        across_(image_.width(), tiling.tile_size * grid.cols),
        down_(image_.height(), tiling.tile_size * grid.rows) {}

  // What a thread needs, allocated before it starts.
  std::unique_ptr<BandResizer> resizer() const { return std::make_unique<BandResizer>(image_, across_, down_); }

  // The rows of part `part` of `parts`, of which each must come after the one before.
  void write(BandResizer* resizer, int part, int parts) const {
    const int rows = down_.target;
    const auto edge = [&](int at) { return static_cast<int>(int64_t{rows} * at / parts); };
    resizer->resize(edge(part), edge(part + 1), [this](int y, const PlanarRow& row) { write_row(y, row); });
  }

 private:
  void write_row(int y, const PlanarRow& row) const {
    const size_t size = static_cast<size_t>(tiling_.tile_size), plane = size * size;
    const size_t tile_row = static_cast<size_t>(y) / size, line = static_cast<size_t>(y) % size;
    for (size_t col = 0; col < static_cast<size_t>(grid_.cols); ++col) {
      float* tile = out_ + (tile_row * static_cast<size_t>(grid_.cols) + col) * 3 * plane;
      for (size_t channel = 0; channel < 3; ++channel) {
        resize_kernels().normalize(row.channels[channel] + col * size, tiling_.tile_size, tiling_.mean[channel],
                                   tiling_.std[channel], tile + channel * plane + line * size);
      }
    }
  }

  const Pixels lowered_;  // empty, but for a very tall image
  const Pixels& image_;
  const Tiling& tiling_;
  TileGrid grid_;
  float* out_;
  ResizeAxis across_, down_;
};

// A part of the work: its rows of each resize, by bands. Nothing in it throws.
struct Part {
  std::vector<std::unique_ptr<BandResizer>> resizers;
  int number;

  void run(const std::vector<std::unique_ptr<GridResize>>& resizes, int parts, int bands) {
    for (int band = number * bands; band < (number + 1) * bands; ++band) {
      for (size_t i = 0; i < resizes.size(); ++i) resizes[i]->write(resizers[i].get(), band, parts * bands);
    }
  }
};

// Runs the parts, each in a thread of its own but the first; one whose thread cannot be started, in this one.
void run_parts(const std::vector<std::unique_ptr<GridResize>>& resizes, std::vector<Part>* parts, int bands) {
  const int count = static_cast<int>(parts->size());
  std::vector<std::thread> threads;
  threads.reserve(parts->size());
  std::vector<Part*> own = {&parts->front()};
  own.reserve(parts->size());
  for (size_t i = 1; i < parts->size(); ++i) {
    Part* part = &(*parts)[i];
    try {
      threads.emplace_back([&resizes, part, count, bands] { part->run(resizes, count, bands); });
    } catch (const std::system_error&) {
      own.push_back(part);
    }
  }
  for (Part* part : own) part->run(resizes, count, bands);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

void write_pixel_values(const Pixels& image, const Tiling& tiling, float* out, int threads) {
  require_size(image.width(), image.height(), tiling.limits, "image");
  const TileGrid grid = choose_grid(image.width(), image.height(), tiling);
  const size_t size = static_cast<size_t>(tiling.tile_size), tiles = tile_count(image.width(), image.height(), tiling);
  std::vector<std::unique_ptr<GridResize>> resizes;
  resizes.push_back(std::make_unique<GridResize>(image, tiling, grid, out));
  if (tiles > static_cast<size_t>(grid.cols) * static_cast<size_t>(grid.rows)) {
    float* thumbnail = out + (tiles - 1) * 3 * size * size;
    resizes.push_back(std::make_unique<GridResize>(image, tiling, TileGrid{}, thumbnail));
  }
  static const int available = thread_count();
  threads = std::max(1, std::min({threads > 0 ? threads : available, kMaxThreads, tiling.tile_size}));
  std::vector<Part> parts(static_cast<size_t>(threads));
  for (int i = 0; i < threads; ++i) {
    parts[static_cast<size_t>(i)].number = i;
    for (const auto& resize : resizes) parts[static_cast<size_t>(i)].resizers.push_back(resize->resizer());
  }
  const size_t bands = image.count() * Pixels::kBytes / kBandBytes / parts.size() + 1;
  run_parts(resizes, &parts, static_cast<int>(bands));
}

PixelValues pixel_values(const Pixels& image, const Tiling& tiling, int threads) {
  require_size(image.width(), image.height(), tiling.limits, "image");
  const size_t size = static_cast<size_t>(tiling.tile_size);
  PixelValues result;
  result.tiles = tile_count(image.width(), image.height(), tiling);
  result.count = checked_product({result.tiles, 3, size, size}, "image");
  result.values = large_array<float>(result.count);
  write_pixel_values(image, tiling, result.values.get(), threads);
  return result;
}

}  // namespace r1v
