// What the server calls: a backend whose models answer with libr1v.
#include <memory>

#include "base/error.h"
#include "triton/model.h"
#include "triton/status.h"

using namespace r1v;
using triton::check;

namespace {

void require_api() {
  uint32_t major = 0, minor = 0;
  check(TRITONBACKEND_ApiVersion(&major, &minor));
  if (major == triton::kApiMajor && minor >= triton::kApiMinor) return;
  throw Error(
      Code::kCapability, "This server's API does not have what the backend uses.",
      {"", std::to_string(triton::kApiMajor) + "." + std::to_string(triton::kApiMinor) + " or a later minor version",
       std::to_string(major) + "." + std::to_string(minor), "use Triton 24.10 or later"});
}

triton::MetricFamilies* families_of(TRITONBACKEND_Backend* backend) {
  void* state = nullptr;
  check(TRITONBACKEND_BackendState(backend, &state));
  return static_cast<triton::MetricFamilies*>(state);
}

triton::Model* state_of(TRITONBACKEND_Model* model) {
  void* state = nullptr;
  check(TRITONBACKEND_ModelState(model, &state));
  return static_cast<triton::Model*>(state);
}

}  // namespace

TRITONSERVER_Error* TRITONBACKEND_Initialize(TRITONBACKEND_Backend* backend) {
  return triton::guarded([&] {
    require_api();
    auto families = std::make_unique<triton::MetricFamilies>();
    check(TRITONBACKEND_BackendSetState(backend, families.get()));
    families.release();
  });
}

TRITONSERVER_Error* TRITONBACKEND_Finalize(TRITONBACKEND_Backend* backend) {
  return triton::guarded([&] { delete families_of(backend); });
}

TRITONSERVER_Error* TRITONBACKEND_ModelInitialize(TRITONBACKEND_Model* model) {
  return triton::guarded([&] {
    TRITONBACKEND_Backend* backend = nullptr;
    check(TRITONBACKEND_ModelBackend(model, &backend));
    auto opened = std::make_unique<triton::Model>(model, *families_of(backend));
    check(TRITONBACKEND_ModelSetState(model, opened.get()));
    opened.release();
  });
}

TRITONSERVER_Error* TRITONBACKEND_ModelFinalize(TRITONBACKEND_Model* model) {
  return triton::guarded([&] { delete state_of(model); });
}

TRITONSERVER_Error* TRITONBACKEND_ModelInstanceExecute(TRITONBACKEND_ModelInstance* instance,
                                                       TRITONBACKEND_Request** requests, const uint32_t request_count) {
  return triton::guarded([&] {
    TRITONBACKEND_Model* model = nullptr;
    check(TRITONBACKEND_ModelInstanceModel(instance, &model));
    triton::Model* answering = state_of(model);
    for (uint32_t i = 0; i < request_count; ++i) answering->answer(instance, requests[i]);
  });
}
