#include "triton/model.h"

#include <chrono>
#include <filesystem>

#include "triton/question.h"
#include "triton/sampling_parameters.h"
#include "triton/status.h"

namespace r1v::triton {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;

// Parameters of config.pbtxt.
class Parameters {
 public:
  explicit Parameters(TRITONBACKEND_Model* model) {
    TRITONSERVER_Message* message = nullptr;
    const char* text = nullptr;
    size_t size = 0;
    check(TRITONBACKEND_ModelConfig(model, 1, &message));
    const std::unique_ptr<TRITONSERVER_Message, decltype(&TRITONSERVER_MessageDelete)> owned(
        message, TRITONSERVER_MessageDelete);
    check(TRITONSERVER_MessageSerializeToJson(message, &text, &size));
    parameters_ = parse_json(std::string(text, size), "the model's configuration").value("parameters", Json::object());
  }

  bool has(const std::string& name) const { return parameters_.contains(name); }

  std::string text(const std::string& name) const {
    const auto found = parameters_.find(name);
    if (found != parameters_.end()) return found->at("string_value").get<std::string>();
    throw Error(Code::kUsage, "A parameter of the model is missing.",
                {"config.pbtxt: parameters", name, "", "write the repository again: r1v-export deploy triton"});
  }

  int64_t number(const std::string& name) const {
    const std::string given = text(name);
    constexpr size_t kMostDigits = 9;
    if (!given.empty() && given.size() <= kMostDigits && given.find_first_not_of("0123456789") == given.npos)
      return std::stoll(given);
    throw Error(Code::kUsage, "A parameter of the model is no number.",
                {"config.pbtxt: parameters." + name, "a whole number", given, ""});
  }

 private:
  Json parameters_;
};

// A folder that a parameter names, relative to the model repository.
std::filesystem::path folder_of(TRITONBACKEND_Model* model, const std::string& parameter) {
  TRITONBACKEND_ArtifactType type{};
  const char* folder = nullptr;
  check(TRITONBACKEND_ModelRepository(model, &type, &folder));
  const std::filesystem::path repository = std::filesystem::path(folder).parent_path();
  return (repository / Parameters(model).text(parameter)).lexically_normal();
}

RunnerOptions runner_options(TRITONBACKEND_Model* model) {
  const Parameters parameters(model);
  RunnerOptions options;
  if (parameters.has("engine")) options.engine.engine = folder_of(model, "engine").string();
  options.engine.target = parameters.text("target");
  // Repositories of earlier versions do not have it.
  if (parameters.has("vision_target")) options.engine.vision_target = parameters.text("vision_target");
  options.engine.device = parameters.text("device");
  options.engine.warn = log_warning;
  options.batching.max_rows = parameters.number("max_rows");
  options.batching.cache_bytes = parameters.number("cache_mib") * kMiB;
  options.batching.image_cache_bytes = parameters.number("image_cache_mib") * kMiB;
  return options;
}

const char* name_of(TRITONBACKEND_Model* model) {
  const char* name = nullptr;
  check(TRITONBACKEND_ModelName(model, &name));
  return name;
}

// What the checkpoint recommends, with a seed of its own for every answer.
Sampling unseeded(Sampling sampling) {
  sampling.seed = std::nullopt;
  return sampling;
}

uint64_t now_ns() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(now).count());
}

}  // namespace

Model::Model(TRITONBACKEND_Model* model, const MetricFamilies& families)
    : metrics_(families, name_of(model)),
      sender_([this] { metrics_.show(runner_.stats()); }),
      runner_(folder_of(model, "bundle"), runner_options(model)),
      default_sampling_(unseeded(runner_.default_sampling())) {
  if (const std::string note = runner_.note(); !note.empty()) log_info(note);
  metrics_.show(runner_.stats());
}

void Model::answer(TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request* request) noexcept {
  const uint64_t begun_ns = now_ns();
  bool started = false;
  std::shared_ptr<OpenAnswer> answer;
  try {
    answer = std::make_shared<OpenAnswer>(request);
    start(request, answer);
    started = true;
  } catch (...) {
    if (answer != nullptr) {
      sender_.refuse(std::move(answer), std::current_exception());
    } else {
      log_failed(triton_error(std::current_exception()), "a request cannot be answered");
    }
  }
  const uint64_t ended_ns = now_ns();
  log_failed(
      TRITONBACKEND_ModelInstanceReportStatistics(instance, request, started, begun_ns, begun_ns, ended_ns, ended_ns),
      "no statistics");
  log_failed(TRITONBACKEND_RequestRelease(request, TRITONSERVER_REQUEST_RELEASE_ALL), "a request was not released");
}

void Model::start(TRITONBACKEND_Request* request, const std::shared_ptr<OpenAnswer>& answer) {
  require_no_parameters(request);
  const RequestInputs inputs(request);
  answer->streams = inputs.flag("stream", true);
  Request question = read_question(inputs, runner_);
  const std::optional<std::string> parameters = inputs.text("sampling_parameters");
  const Sampling sampling = parameters ? read_sampling(*parameters, default_sampling_) : default_sampling_;
  JobOptions options;
  options.deliver = [this, answer](JobResult result) { sender_.add(answer, std::move(result)); };
  sender_.open(answer, runner_.start(std::move(question), sampling, std::move(options)));
}

}  // namespace r1v::triton
