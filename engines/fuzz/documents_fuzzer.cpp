// manifest.json, contract.json, pipeline.json and the locations of weights in a graph: any content is refused with an
// Error, or is read. The first byte of an input says which it is.
#include "backends/onnxruntime/graph_message.h"
#include "bundle/contract_document.h"
#include "bundle/manifest.h"
#include "bundle/pipeline_document.h"
#include "fuzz/check.h"
#include "sampling/sampling.h"
#include "text/documents.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace r1v;
  if (size == 0) return 0;
  const std::string text(reinterpret_cast<const char*>(data + 1), size - 1);
  try {
    if (data[0] == 'g') {
      const auto same = [](const std::string& location) { return location; };
      const std::string written = ort::with_locations(text, same, "graph");
      check(ort::with_locations(written, same, "graph") == written, "a graph that is written is read again");
      return 0;
    }
    const Json document = parse_json(text, "document");
    switch (data[0]) {
      case 'm': parse_manifest(document, "manifest.json"); break;
      case 'c': parse_contract(document, "contract.json"); break;
      case 'p': parse_pipeline(document, "pipeline.json"); break;
      default: {
        const Fields fields(document, "pipeline.json");
        prompt_from_json(fields.at("prompt"), "prompt");
        tokenizer_from_json(fields.at("tokenizer"), "tokenizer");
        stop_ids_from_json(fields.at("stop_tokens"), "stop_tokens");
        reasoning_from_json(fields.at("reasoning"), "reasoning");
        sampling_from_json(fields.at("default_sampling"), "default_sampling");
      }
    }
  } catch (const Error&) {
  }
  return 0;
}
