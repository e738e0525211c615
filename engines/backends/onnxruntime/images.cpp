#include "backends/onnxruntime/images.h"

#include "base/error.h"

namespace r1v::ort {
namespace {

constexpr char kAuto[] = "auto", kFolder[] = "images/onnxruntime", kInt8Target[] = "onnxruntime-int8",
               kTitle[] = "onnxruntime in int8", kPassed[] = "passed";
#if defined(__x86_64__) || defined(_M_X64)
constexpr bool kIsX86 = true;
#else
constexpr bool kIsX86 = false;
#endif

// Why images in 8 bits are not what a gate has found good enough; empty where it has.
std::string not_passed(const Bundle& bundle, const std::string& target) {
  const auto verdict = bundle.manifest.image_parity.find(target + " with images by " + kTitle);
  if (verdict == bundle.manifest.image_parity.end() || verdict->second.empty()) return "no gate has compared it";
  return verdict->second == kPassed ? "" : verdict->second;
}

[[noreturn]] void refuse(const std::string& target, const std::string& asked, bool has_int8) {
  const std::string int8 = has_int8 ? std::string(", ") + kInt8Target : "";
  throw Error(Code::kUsage, "libr1v encodes images by the target that answers, or by its part in 8 bits.",
              {"--vision-target, r1v_engine_options.vision_target", std::string(kAuto) + ", " + target + int8, asked,
               has_int8 ? "name one of these" : "omit it; with --precision int4 a build has a part in 8 bits"});
}

}  // namespace

bool is_auto(const std::string& vision_target) { return vision_target.empty() || vision_target == kAuto; }

ImageGraphs choose_images(const Bundle& bundle, const std::string& target, const Options& own,
                          const DeviceOptions& device, const std::string& vision_target,
                          const std::function<void(const std::string&)>& warn) {
  ImageGraphs exact{own, device, "", ""};
  if (vision_target == target) return exact;
  const bool has_int8 = has_image_graphs(bundle, target, kFolder), on_cpu = device.device == Device::kCpu;
  std::string reason = not_passed(bundle, target);
  if (is_auto(vision_target)) {
    if (!has_int8 || !on_cpu) return exact;
    if (reason.empty() && !kIsX86) reason = "images in 8 bits by onnxruntime are for x86 CPUs";
    if (!reason.empty()) {
      exact.note = std::string("images: by ") + target + ", in float32; " + kTitle + " is here, but " + reason;
      return exact;
    }
  } else if (vision_target != kInt8Target || !has_int8) {
    refuse(target, vision_target, has_int8);
  } else if (!reason.empty() && warn) {
    warn(std::string("images by ") + kTitle + " are not compared with PyTorch (" + reason +
         "); compare them: r1v-export check " + bundle.folder.string() + " --vision-target " + kInt8Target);
  }
  ImageGraphs int8{image_options(bundle, target, kFolder, own),
                   {Device::kCpu, 0, device.threads},
                   on_cpu ? "int8" : "int8 on the CPU",
                   ""};
  if (is_auto(vision_target)) {
    int8.note = "images: by onnxruntime, in int8, which is faster here; exact with --vision-target " + target;
  }
  return int8;
}

}  // namespace r1v::ort
