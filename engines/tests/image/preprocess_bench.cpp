// Times the preprocessing, for benchmarks/preprocess_cpp.py: for each line of its input, which is an image file and a
// number of threads, milliseconds of decoding, of tiling and of all processors' time, and a digest of the tiles.
//   r1v_preprocess_bench PIPELINE_JSON
#include <chrono>
#include <cstdio>
#include <ctime>
#include <iostream>
#include <sstream>

#include "base/files.h"
#include "base/sha256.h"
#include "image/load_image.h"
#include "image/tiles.h"

namespace r1v {
namespace {

using Clock = std::chrono::steady_clock;

double milliseconds(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double, std::milli>(to - from).count();
}

double processor_milliseconds() {
  timespec time{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) * 1e3 + static_cast<double>(time.tv_nsec) / 1e6;
}

int run(const char* path) {
  const Json document = parse_json(read_file(path), path);
  const Fields pipeline(document, "pipeline.json");
  const Tiling tiling = Tiling::from_json(pipeline.object("tiling"));
  const ImagePolicy policy = parse_image_policy(pipeline);
  std::string line, file;
  int threads = 0;
  while (std::getline(std::cin, line) && std::istringstream(line) >> file >> threads) {
    const double processor_start = processor_milliseconds();
    const Clock::time_point start = Clock::now();
    const Pixels image = load_image(file, policy, tiling.limits);
    const Clock::time_point decoded = Clock::now();
    const PixelValues tiles = pixel_values(image, tiling, threads);
    const Clock::time_point tiled = Clock::now();
    const double processor = processor_milliseconds() - processor_start;
    Sha256 sha;
    sha.update(tiles.values.get(), tiles.count * sizeof(float));
    std::printf("%.4f %.4f %.4f %s\n", milliseconds(start, decoded), milliseconds(decoded, tiled), processor,
                sha.hex().c_str());
    std::fflush(stdout);
  }
  return 0;
}

}  // namespace
}  // namespace r1v

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  try {
    return r1v::run(argv[1]);
  } catch (const r1v::Error& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
