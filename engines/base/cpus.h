// How many threads an operator gets on the CPU: r1v_export/cpus.py.
#pragma once

#include <filesystem>

namespace r1v {

// OMP_NUM_THREADS, else the CPUs that this process may use: the least of the physical cores, the CPU affinity and the
// CPU quotas of its cgroups (version 1 or 2). `root` is that of the file system that holds /proc and /sys.
int thread_count(const std::filesystem::path& root = "/");

}  // namespace r1v
