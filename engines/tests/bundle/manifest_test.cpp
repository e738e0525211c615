#include "bundle/manifest.h"

#include <gtest/gtest.h>

#include "base/sha256.h"
#include "tests/error_message.h"
#include "tests/temporary_folder.h"

namespace r1v {
namespace {

Json entry_of(const std::string& content) {
  Sha256 sha256;
  sha256.update(content.data(), content.size());
  return {{"sha256", sha256.hex()}, {"size", content.size()}};
}

Json manifest_of(const Json& files) {
  return {
      {"schema_version", 2}, {"producer", "test"}, {"precision", "fp32"}, {"stages", {{"stage", {{"files", files}}}}}};
}

Manifest parsed(const Json& files) { return parse_manifest(manifest_of(files), "manifest.json"); }

TEST(Manifest, OfASoundFolderHasNoIssues) {
  const TemporaryFolder folder;
  folder.write("manifest.json", "{}");
  folder.write("a", "abc");
  folder.write("sub/b", "");
  folder.write("report/local/bench.json", "free");
  const Manifest manifest = parsed({{"a", entry_of("abc")}, {"sub/b", entry_of("")}});
  EXPECT_TRUE(find_issues(folder.path(), manifest).empty());
  EXPECT_EQ(read_verified(folder.path(), manifest, "a", 10), "abc");
}

TEST(Manifest, FindsWhatIsMissingAlteredResizedAndExtra) {
  const TemporaryFolder folder;
  folder.write("altered", "abd");
  folder.write("resized", "ab");
  folder.write("sub/extra", "x");
  const Json entry = entry_of("abc");
  const Manifest manifest = parsed({{"altered", entry}, {"missing", entry}, {"resized", entry}});
  const std::vector<ValidationIssue> issues = find_issues(folder.path(), manifest);
  std::string found;
  for (const ValidationIssue& issue : issues) found += issue.path + " " + issue.what + "; ";
  EXPECT_EQ(found,
            "altered is altered; missing is missing; resized has another size; sub/extra is not in the manifest; ");
  EXPECT_NE(error_message([&] { verify_bundle(folder.path(), manifest); }).find("altered is altered (and 3 more)."),
            std::string::npos);
}

TEST(Manifest, FilesThatItDoesNotNameAreNotRead) {
  const TemporaryFolder folder;
  folder.write("a", "abd");
  const Manifest manifest = parsed({{"a", entry_of("abc")}});
  EXPECT_NE(error_message([&] { read_verified(folder.path(), manifest, "a", 10); }).find("is altered"),
            std::string::npos);
  EXPECT_NE(error_message([&] { read_verified(folder.path(), manifest, "b", 10); }).find("does not name"),
            std::string::npos);
}

TEST(Manifest, PathsThatLeadOutAreRefused) {
  for (const char* path : {"../a", "/etc/passwd", "a/../../b", "a\\b", ""}) {
    EXPECT_THROW(parsed({{path, entry_of("")}}), Error) << path;
  }
}

TEST(Manifest, OfAnotherVersionOrWithWrongFieldsIsRefused) {
  Json other = manifest_of(Json::object());
  other["schema_version"] = 3;
  EXPECT_NE(error_message([&] { parse_manifest(other, "m"); }).find("another schema version"), std::string::npos);
  for (const Json& entry :
       {Json(1), Json{{"sha256", "x"}, {"size", 1}}, Json{{"sha256", entry_of("")["sha256"]}, {"size", -1}}}) {
    EXPECT_THROW(parsed({{"a", entry}}), Error) << entry;
  }
  EXPECT_THROW(parse_manifest(Json::array(), "m"), Error);
}

TEST(Manifest, VerdictsOnImagesAreTexts) {
  Json manifest = manifest_of(Json::object());
  EXPECT_TRUE(parse_manifest(manifest, "m").image_parity.empty());
  manifest["image_parity"] = {{"a with images by b", "passed"}};
  EXPECT_EQ(parse_manifest(manifest, "m").image_parity.at("a with images by b"), "passed");
  for (const Json& wrong : {Json(1), Json::array({"passed"}), Json{{"a with images by b", 1}}}) {
    manifest["image_parity"] = wrong;
    EXPECT_NE(error_message([&] { parse_manifest(manifest, "m"); }).find("image_parity"), std::string::npos) << wrong;
  }
}

TEST(Manifest, MissingIsNoBundle) {
  const TemporaryFolder folder;
  EXPECT_NE(error_message([&] { read_manifest(folder.path()); }).find("This is not a bundle."), std::string::npos);
  EXPECT_NE(error_message([&] { read_manifest(folder.path() / "none"); }).find("no such folder"), std::string::npos);
}

}  // namespace
}  // namespace r1v
