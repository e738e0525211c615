#include "backends/onnxruntime/images.h"

#include "base/error.h"

namespace r1v::ort {
namespace {

constexpr char kFolder[] = "images/onnxruntime", kInt8Target[] = "onnxruntime-int8", kTitle[] = "onnxruntime in int8",
               kPassed[] = "passed";
#if defined(__x86_64__) || defined(_M_X64)
constexpr bool kIsX86 = true;
#else
constexpr bool kIsX86 = false;  // not compared on others
#endif

// What the gate found that compared images in 8 bits with PyTorch; empty where there was none.
std::string verdict_on_int8(const Bundle& bundle, const std::string& target) {
  const auto verdict = bundle.manifest.image_parity.find(target + " with images by " + kTitle);
  return verdict == bundle.manifest.image_parity.end() ? "" : verdict->second;
}

}  // namespace

ImageEncoder choose_images(const Bundle& bundle, const std::string& target, const Options& own,
                           const DeviceOptions& device, const std::string& asked) {
  ImageEncoder exact{own, device, "", ""};
  if (asked == target) return exact;
  const bool has_int8 = has_image_graphs(bundle, target, kFolder);
  if (asked != kAuto && !(asked == kInt8Target && has_int8)) {
    throw Error(Code::kUsage, "Nothing in the bundle encodes images by this name.",
                {"vision target", std::string(kAuto) + ", " + target + (has_int8 ? std::string(", ") + kInt8Target : ""), asked,
                 "name one of these; for parts in 8 bits build again with --precision int4"});
  }
  const std::string verdict = verdict_on_int8(bundle, target);
  const bool passed = verdict == kPassed;
  if (asked == kAuto && !(has_int8 && device.device == Device::kCpu && kIsX86 && passed)) return exact;
  ImageEncoder int8{image_options(bundle, target, kFolder, own), {Device::kCpu, 0, device.threads}, "int8", ""};
  if (asked == kAuto) {
    int8.note = "images: by onnxruntime, in int8, which is faster here; exact with --vision-target " + target;
  } else if (!passed) {
    int8.note = std::string("warning: images by ") + kTitle + " are not compared with PyTorch" +
                (verdict.empty() ? "" : " (" + verdict + ")") + "; compare them: r1v-export check " +
                bundle.folder.string() + " --vision-target " + kInt8Target;
  }
  return int8;
}

}  // namespace r1v::ort
