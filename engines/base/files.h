// Files, read only if they are regular files.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

#include "base/error.h"

namespace r1v {

// Largest file that is read into memory as text or JSON (r1v_export/files.py has the same).
inline constexpr uint64_t kTextLimitBytes = 64ull << 20;
// The same for a graph: protobuf ends at 2 GiB; weights lie apart.
inline constexpr uint64_t kGraphLimitBytes = 4ull << 30;

// The content of a regular file, or of a link to one; never waits for a pipe, never reads a device.
// Throws `code`: it cannot be opened, is no regular file, or is larger than `limit_bytes`.
std::string read_file(const std::filesystem::path& path, uint64_t limit_bytes = kTextLimitBytes,
                      Code code = Code::kBundle);

// For files that a library opens by their name. Throws `code`: it is missing, or no regular file nor a link to one.
void require_regular(const std::filesystem::path& path, Code code = Code::kBundle);

// Calls `take` with the content of a regular file in pieces. Throws `code` as `read_file`.
void read_pieces(const std::filesystem::path& path, const std::function<void(const char*, size_t)>& take,
                 Code code = Code::kBundle);

// The content of a regular file, mapped: only what is read takes memory.
class MappedFile {
 public:
  // Throws `code`: it cannot be opened or mapped, or is no regular file.
  explicit MappedFile(const std::filesystem::path& path, Code code = Code::kBundle);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const char* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  const char* data_ = nullptr;
  size_t size_ = 0;
};

// Whether `path` is what a bundle's documents may name: plain, relative, "/" between its parts, without "..", without
// a null byte, so that it stays inside the folder.
bool is_inside(const std::string& path);

}  // namespace r1v
