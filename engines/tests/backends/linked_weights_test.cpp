#include "backends/onnxruntime/linked_weights.h"

#include <gtest/gtest.h>

#include "backends/onnxruntime/graph_message.h"
#include "tests/error_message.h"
#include "tests/temporary_folder.h"

namespace r1v {
namespace {

namespace fs = std::filesystem;

// A field of bytes, shorter than 128.
std::string field(int number, const std::string& content) {
  return std::string{static_cast<char>(number << 3 | 2), static_cast<char>(content.size())} + content;
}

std::string entry(const std::string& key, const std::string& value) {
  return field(13, field(1, key) + field(2, value));
}

// An ONNX file with one initializer whose weights lie there.
std::string model(const std::string& location) {
  const std::string version("\x08\x0a", 2), type("\x10\x01", 2);
  return version + field(7, field(1, "a node") + field(5, type + entry("location", location) + entry("offset", "0")));
}

std::string placed(const std::string& location, const fs::path& root) {
  const ort::PlacedModel found = ort::follow_links(model(location), root, "graph");
  std::string where;
  ort::with_locations(
      found.content, [&](const std::string& each) { return where = each; }, "graph");
  return (found.weights_folder / where).string();
}

TEST(LinkedWeights, WithoutLinksAModelStaysAsItIs) {
  const TemporaryFolder folder;
  folder.write("graphs/a.data", "x");
  const fs::path root = fs::canonical(folder.path()) / "graphs";
  const ort::PlacedModel found = ort::follow_links(model("a.data"), root, "graph");
  EXPECT_EQ(found.content, model("a.data"));
  EXPECT_EQ(found.weights_folder, root);
  EXPECT_EQ(ort::follow_links("", root, "graph").content, "");
}

TEST(LinkedWeights, LinkedFilesAndFoldersAreFoundWhereTheyLie) {
  const TemporaryFolder folder;
  const fs::path real = fs::canonical(folder.path());
  folder.write("elsewhere/blobs/1", "x");
  folder.write("graphs/sub/b.data", "x");
  fs::create_symlink("../elsewhere/blobs/1", real / "graphs/a.data");
  fs::create_directory_symlink("graphs", real / "linked");
  EXPECT_EQ(placed("a.data", real / "graphs"), real / "elsewhere/blobs/1");
  EXPECT_EQ(placed("a.data", real / "linked"), real / "elsewhere/blobs/1");
  EXPECT_EQ(placed("sub/b.data", real / "linked"), real / "graphs/sub/b.data");
  // Of two files, one of them behind a link: both relative to the folder that holds both.
  const ort::PlacedModel both = ort::follow_links(model("a.data") + model("sub/b.data"), real / "graphs", "graph");
  EXPECT_EQ(both.weights_folder, real);
  EXPECT_EQ(both.content, model("elsewhere/blobs/1") + model("graphs/sub/b.data"));
}

TEST(LinkedWeights, NoLocationLeadsOutOfTheBundleByItsName) {
  const TemporaryFolder folder;
  folder.write("outside.data", "x");
  folder.write("graphs/a.data", "x");
  for (const std::string location :
       {"../outside.data", "sub/../../outside.data", "/etc/passwd", "", "..\\outside.data", ".."}) {
    EXPECT_NE(error_message([&] { placed(location, folder.path() / "graphs"); }).find("outside its bundle"),
              std::string::npos)
        << location;
  }
}

TEST(LinkedWeights, WhatIsNoRegularFileIsRefused) {
  const TemporaryFolder folder;
  fs::create_directories(folder.path() / "graphs/folder");
  fs::create_symlink("/dev/zero", folder.path() / "graphs/device");
  fs::create_symlink("nowhere", folder.path() / "graphs/nothing");
  fs::create_symlink("itself", folder.path() / "graphs/itself");
  for (const char* location : {"folder", "device", "nothing", "itself", "missing"}) {
    const std::string message = error_message([&] { placed(location, folder.path() / "graphs"); });
    EXPECT_NE(message.find("cannot be read"), std::string::npos) << message;
    EXPECT_NE(message.find(location), std::string::npos) << message;
  }
}

TEST(GraphMessage, ADamagedGraphIsRefused) {
  const std::string whole = model("a.data");
  const auto same = [](const std::string& location) { return location; };
  EXPECT_EQ(ort::with_locations(whole, same, "graph"), whole);
  for (size_t size = 1; size < whole.size(); ++size) {
    if (size == 2) continue;  // a whole field
    EXPECT_THROW(ort::with_locations(whole.substr(0, size), same, "graph"), Error) << size;
  }
  for (const std::string damaged :
       {"\x0b", "\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "\x3a\xff\xff\xff\xff\x7f"}) {
    EXPECT_THROW(ort::with_locations(damaged, same, "graph"), Error);
  }
}

}  // namespace
}  // namespace r1v
