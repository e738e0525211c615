#include "base/cpus.h"

#include <sched.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <map>
#include <optional>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

namespace r1v {
namespace {

namespace fs = std::filesystem;

std::string read(const fs::path& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
  return parts;
}

std::optional<double> positive_number(std::string text) {
  text.erase(std::remove(text.begin(), text.end(), '\n'), text.end());
  if (text.empty() || text.size() > 15 || text.find_first_not_of("0123456789") != std::string::npos) return {};
  const double number = std::stod(text);
  return number > 0 ? std::optional(number) : std::nullopt;
}

// Sets of threads that share a core, as the kernel lists them.
int physical_cores(const fs::path& root) {
  std::set<std::string> cores;
  std::error_code error;
  for (const auto& each : fs::directory_iterator(root / "sys/devices/system/cpu", error)) {
    std::string siblings = read(each.path() / "topology/core_cpus_list");
    if (siblings.empty()) siblings = read(each.path() / "topology/thread_siblings_list");
    if (!siblings.empty()) cores.insert(siblings);
  }
  return static_cast<int>(cores.size());
}

// CPUs' worth of time that one cgroup allows.
std::optional<double> quota_of(const fs::path& folder) {
  std::optional<double> quota, period;
  const std::vector<std::string> fields = split(read(folder / "cpu.max"), ' ');
  if (!fields.empty()) {
    quota = positive_number(fields[0]);
    period = positive_number(fields.size() > 1 ? fields[1] : "100000");
  } else {
    quota = positive_number(read(folder / "cpu.cfs_quota_us"));
    period = positive_number(read(folder / "cpu.cfs_period_us"));
  }
  return quota && period ? std::optional(*quota / *period) : std::nullopt;
}

// This process's cgroup in the hierarchy of version 2, and in that of version 1 that limits CPU time.
std::map<int, std::string> cgroup_paths(const fs::path& root) {
  std::map<int, std::string> paths;
  for (const std::string& line : split(read(root / "proc/self/cgroup"), '\n')) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1), path = line.substr(second + 1);
    const std::vector<std::string> names = split(controllers, ',');
    if (line.substr(0, first) == "0" && controllers.empty()) paths[2] = path;
    if (std::find(names.begin(), names.end(), "cpu") != names.end()) paths[1] = path;
  }
  return paths;
}

// The folder of the process's cgroup below a mount, and those above it.
std::vector<fs::path> folders_below(const fs::path& mount, const std::string& mount_root, const std::string& path) {
  fs::path below = fs::path(path).lexically_relative(mount_root);
  // In a cgroup namespace, or where the container shows its own cgroup only, the path is not below the mount's.
  if (below.empty() || std::find(below.begin(), below.end(), "..") != below.end()) below = ".";
  std::vector<fs::path> folders;
  for (; !below.empty() && below != "."; below = below.parent_path()) folders.push_back(mount / below);
  folders.push_back(mount);
  return folders;
}

std::optional<double> cpu_quota(const fs::path& root) {
  const std::map<int, std::string> paths = cgroup_paths(root);
  std::optional<double> least;
  for (const std::string& line : split(read(root / "proc/self/mountinfo"), '\n')) {
    const size_t parting = line.find(" - ");
    if (parting == std::string::npos) continue;
    const std::vector<std::string> mount = split(line.substr(0, parting), ' '),
                                   kind = split(line.substr(parting + 3), ' ');
    if (mount.size() < 5 || kind.size() < 3 || (kind[0] != "cgroup2" && kind[0] != "cgroup")) continue;
    const std::vector<std::string> options = split(kind[2], ',');
    const bool limits_time = std::find(options.begin(), options.end(), "cpu") != options.end();
    const auto found = paths.find(kind[0] == "cgroup2" ? 2 : 1);
    if (found == paths.end() || (kind[0] == "cgroup" && !limits_time)) continue;
    for (const fs::path& folder : folders_below(root / fs::path(mount[4]).relative_path(), mount[3], found->second)) {
      const std::optional<double> quota = quota_of(folder);
      if (quota && (!least || *quota < *least)) least = quota;
    }
  }
  return least;
}

}  // namespace

int thread_count(const fs::path& root) {
  if (const char* setting = std::getenv("OMP_NUM_THREADS")) {
    const std::vector<std::string> parts = split(setting, ',');
    const auto number = parts.empty() || parts[0].size() > 5 ? std::nullopt : positive_number(parts[0]);
    if (number) return static_cast<int>(*number);
  }
  int count = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  if (const int cores = physical_cores(root); cores > 0) count = std::min(count, cores);
  cpu_set_t affinity;
  if (sched_getaffinity(0, sizeof affinity, &affinity) == 0) count = std::min(count, std::max(1, CPU_COUNT(&affinity)));
  if (const std::optional<double> quota = cpu_quota(root)) {
    count = std::min(count, std::max(1, static_cast<int>(*quota) + (*quota > static_cast<int>(*quota))));
  }
  return count;
}

}  // namespace r1v
