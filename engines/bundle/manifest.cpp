#include "bundle/manifest.h"

#include <algorithm>
#include <set>

#include "base/files.h"
#include "base/sha256.h"
#include "bundle/contract.h"
#include "bundle/schema_version.h"

namespace r1v {
namespace {

namespace fs = std::filesystem;

constexpr char kFetchAgain[] = "fetch the bundle again, or build it again";

bool is_sha256(const std::string& text) {
  return text.size() == 64 && text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

FileEntry parse_entry(const Fields& fields) {
  FileEntry entry{fields.text("sha256"), static_cast<uint64_t>(fields.integer("size", 0, INT64_MAX))};
  if (!is_sha256(entry.sha256)) throw_field(fields.where() + ".sha256", "64 hexadecimal digits", fields.at("sha256"));
  return entry;
}

Error altered(const fs::path& file, const ValidationIssue& issue, const std::string& more = "") {
  return Error(Code::kBundle, issue.path + " " + issue.what + more + ".",
               {file.string(), issue.expected, issue.found, kFetchAgain});
}

std::vector<ValidationIssue> compare(const fs::path& bundle, const std::string& path, const FileEntry& expected) {
  std::error_code error;
  const fs::path file = bundle / path;
  const fs::file_status status = fs::status(file, error);
  if (!fs::exists(status)) return {{path, "is missing", "", ""}};
  if (!fs::is_regular_file(status)) return {{path, "is no regular file", "", ""}};
  const uint64_t size = fs::file_size(file, error);
  if (error) return {{path, "cannot be read", "", error.message()}};
  if (size != expected.size) {
    return {{path, "has another size", std::to_string(expected.size) + " bytes", std::to_string(size) + " bytes"}};
  }
  Sha256 sha256;
  read_pieces(file, [&](const char* data, size_t count) { sha256.update(data, count); });
  const std::string found = sha256.hex();
  if (found != expected.sha256) return {{path, "is altered", "sha256 " + expected.sha256, "sha256 " + found}};
  return {};
}

// Whether `path` belongs to the bundle without being hashed.
bool is_free(const std::string& path) {
  const std::string local = std::string(contract::kLocalReports) + "/";
  return path == contract::kManifestFile || path.compare(0, local.size(), local) == 0;
}

// All that the manifest does not name, folders aside. Links are not followed.
void add_extra(const fs::path& bundle, const Manifest& manifest, std::vector<ValidationIssue>* issues) {
  std::set<std::string> folders;
  for (const auto& [path, entry] : manifest.files) {
    for (fs::path parent = fs::path(path).parent_path(); !parent.empty(); parent = parent.parent_path()) {
      folders.insert(parent.generic_string());
    }
  }
  std::error_code error;
  for (fs::recursive_directory_iterator each(bundle, error), end; each != end; each.increment(error)) {
    if (error) break;
    const std::string path = fs::relative(each->path().parent_path(), bundle)
                                 .append(each->path().filename().string())
                                 .lexically_normal()
                                 .generic_string();
    const fs::file_status status = each->symlink_status(error);
    if (fs::is_directory(status) || manifest.files.count(path) || folders.count(path) || is_free(path)) continue;
    const bool plain = fs::is_regular_file(status) || fs::is_symlink(status);
    issues->push_back({path, plain ? "is not in the manifest" : "is no regular file", "", ""});
  }
}

}  // namespace

Manifest parse_manifest(const Json& document, const std::string& where) {
  const Fields fields(document, where);
  require_schema_version(fields, contract::kManifestSchemaVersion);
  Manifest manifest{fields.text("producer"), fields.text("precision"), {}, {}};
  if (fields.has("image_parity")) {  // bundles of earlier versions do not have it
    const Fields verdicts = fields.object("image_parity");
    for (const auto& [pair, verdict] : verdicts.all().items()) manifest.image_parity[pair] = verdicts.text(pair);
  }
  const Json& stages = fields.object("stages").all();
  for (const auto& [stage, content] : stages.items()) {
    const Fields files = Fields(content, where + ": stages." + stage).object("files");
    for (const auto& [path, entry] : files.all().items()) {
      const std::string field = files.where() + "." + path;
      if (!is_inside(path)) throw_field(field, "a plain relative path inside the bundle", Json(path));
      manifest.files[path] = parse_entry(Fields(entry, field));
    }
  }
  return manifest;
}

Manifest read_manifest(const fs::path& bundle) {
  const fs::path path = bundle / contract::kManifestFile;
  std::error_code error;
  if (!fs::is_regular_file(path, error)) {
    throw Error(
        Code::kBundle, "This is not a bundle.",
        {bundle.string(), contract::kManifestFile, fs::is_directory(bundle, error) ? "no such file" : "no such folder",
         "build one with: r1v-export build -o FOLDER"});
  }
  return parse_manifest(parse_json(read_file(path), path.string()), contract::kManifestFile);
}

std::vector<ValidationIssue> find_issues(const fs::path& bundle, const Manifest& manifest) {
  std::vector<ValidationIssue> issues;
  for (const auto& [path, entry] : manifest.files) {
    for (ValidationIssue& issue : compare(bundle, path, entry)) issues.push_back(std::move(issue));
  }
  add_extra(bundle, manifest, &issues);
  std::stable_sort(issues.begin(), issues.end(), [](const auto& a, const auto& b) { return a.path < b.path; });
  return issues;
}

void verify_bundle(const fs::path& bundle, const Manifest& manifest) {
  const std::vector<ValidationIssue> issues = find_issues(bundle, manifest);
  if (issues.empty()) return;
  const std::string more = issues.size() > 1 ? " (and " + std::to_string(issues.size() - 1) + " more)" : "";
  throw altered(bundle / issues.front().path, issues.front(), more);
}

std::string read_verified(const fs::path& bundle, const Manifest& manifest, const std::string& path,
                          uint64_t limit_bytes) {
  const auto entry = manifest.files.find(path);
  if (entry == manifest.files.end()) {
    throw Error(Code::kBundle, "The manifest does not name a file that the bundle needs.",
                {(bundle / contract::kManifestFile).string(), path, "", kFetchAgain});
  }
  std::error_code error;
  if (!fs::exists(bundle / path, error)) throw altered(bundle / path, {path, "is missing", "", ""});
  std::string content = read_file(bundle / path, limit_bytes);
  Sha256 sha256;
  sha256.update(content.data(), content.size());
  const std::string found = sha256.hex();
  if (found == entry->second.sha256) return content;
  throw altered(bundle / path, {path, "is altered", "sha256 " + entry->second.sha256, "sha256 " + found});
}

}  // namespace r1v
