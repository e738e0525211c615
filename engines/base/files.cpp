#include "base/files.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <vector>

namespace r1v {
namespace {

[[noreturn]] void fail(Code code, const std::filesystem::path& path, const std::string& found) {
  throw Error(code, "A file cannot be read.", {path.string(), "a regular file", found, ""});
}

// A descriptor that is closed whatever happens.
class Descriptor {
 public:
  Descriptor(const std::filesystem::path& path, Code code) {
    // Between stat and open the file may become a pipe: O_NONBLOCK opens that at once, to be refused below.
    require_regular(path, code);
    number_ = ::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (number_ < 0) fail(code, path, std::strerror(errno));
    struct stat status {};
    if (::fstat(number_, &status) != 0 || !S_ISREG(status.st_mode)) {
      ::close(number_);
      fail(code, path, "no regular file");
    }
    size_ = static_cast<uint64_t>(status.st_size);
  }
  ~Descriptor() { ::close(number_); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  int number() const { return number_; }
  uint64_t size() const { return size_; }

 private:
  int number_ = -1;
  uint64_t size_ = 0;
};

// Up to `room` bytes; fewer only at the end of the file.
size_t read_some(const Descriptor& file, char* into, size_t room, const std::filesystem::path& path, Code code) {
  size_t done = 0;
  while (done < room) {
    const ssize_t count = ::read(file.number(), into + done, room - done);
    if (count == 0) break;
    if (count < 0 && errno != EINTR) fail(code, path, std::strerror(errno));
    if (count > 0) done += static_cast<size_t>(count);
  }
  return done;
}

}  // namespace

void require_regular(const std::filesystem::path& path, Code code) {
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) fail(code, path, std::strerror(errno));
  if (!S_ISREG(status.st_mode)) fail(code, path, "no regular file");
}

std::string read_file(const std::filesystem::path& path, uint64_t limit_bytes, Code code) {
  const Descriptor file(path, code);
  if (file.size() > limit_bytes) {
    throw Error(code, "A file is too large.",
                {path.string(), "at most " + std::to_string(limit_bytes) + " bytes",
                 std::to_string(file.size()) + " bytes", ""});
  }
  std::string content(static_cast<size_t>(file.size()), '\0');
  content.resize(read_some(file, content.data(), content.size(), path, code));
  return content;
}

void read_pieces(const std::filesystem::path& path, const std::function<void(const char*, size_t)>& take, Code code) {
  const Descriptor file(path, code);
  std::vector<char> buffer(1 << 20);
  while (const size_t count = read_some(file, buffer.data(), buffer.size(), path, code)) take(buffer.data(), count);
}

MappedFile::MappedFile(const std::filesystem::path& path, Code code) {
  const Descriptor file(path, code);
  size_ = static_cast<size_t>(file.size());
  if (size_ == 0) return;  // Nothing cannot be mapped.
  void* data = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.number(), 0);
  if (data == MAP_FAILED) fail(code, path, std::strerror(errno));
  data_ = static_cast<const char*>(data);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<char*>(data_), size_);
}

bool is_inside(const std::string& path) {
  if (path.empty() || path.front() == '/' || path.find('\\') != std::string::npos) return false;
  if (path.find('\0') != std::string::npos || path.substr(0, path.find('/')).find(':') != std::string::npos) {
    return false;
  }
  for (size_t start = 0; start <= path.size();) {
    const size_t end = std::min(path.find('/', start), path.size());
    const std::string part = path.substr(start, end - start);
    if (part.empty() || part == "." || part == "..") return false;
    start = end + 1;
  }
  return true;
}

}  // namespace r1v
