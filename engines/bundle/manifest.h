// manifest.json: the hash of every file of a bundle.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "base/json.h"

namespace r1v {

struct FileEntry {
  std::string sha256;  // in hexadecimal, lower case
  uint64_t size;       // bytes
};

struct Manifest {
  std::string producer, precision;
  // Of an engine with what encodes its images besides itself: "passed", or why it is not used unasked. By the name of
  // the pair, see r1v_export/targets/images.py.
  std::map<std::string, std::string> image_parity;
  std::map<std::string, FileEntry> files;  // by path inside the bundle, which stays inside it
};

// Throws kBundle: another schema version, a wrong field, or a path that leads out of the folder.
Manifest parse_manifest(const Json& document, const std::string& where);

// Reads manifest.json of a bundle. Throws kBundle: there is none, or it is malformed.
Manifest read_manifest(const std::filesystem::path& bundle);

// One way in which a bundle differs from its manifest.
struct ValidationIssue {
  std::string path, what, expected, found;
};

// Missing, extra and altered files, in the order of their paths. Reads every file.
std::vector<ValidationIssue> find_issues(const std::filesystem::path& bundle, const Manifest& manifest);

// Throws kBundle: a file is missing, extra or altered.
void verify_bundle(const std::filesystem::path& bundle, const Manifest& manifest);

// The content of one file, verified. Throws kBundle: the manifest does not name it, it is missing or altered, or is
// larger than `limit_bytes`.
std::string read_verified(const std::filesystem::path& bundle, const Manifest& manifest, const std::string& path,
                          uint64_t limit_bytes);

}  // namespace r1v
