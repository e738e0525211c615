// Written by `python -m r1v_export.serialized.contract_header`; a test compares it with the contract.
#pragma once

namespace r1v::contract {

// Graphs, in the order of the data flow.
inline constexpr char kVision[] = "vision";
inline constexpr char kProjector[] = "projector";
inline constexpr char kEmbed[] = "embed";
inline constexpr char kDecoder[] = "decoder";

// Boundary tensors.
inline constexpr char kPixelValues[] = "pixel_values";
inline constexpr char kVisionFeatures[] = "vision_features";
inline constexpr char kImageEmbeds[] = "image_embeds";
inline constexpr char kInputIds[] = "input_ids";
inline constexpr char kInputsEmbeds[] = "inputs_embeds";
inline constexpr char kPositionIds[] = "position_ids";
inline constexpr char kCacheWriteIndex[] = "cache_write_index";
inline constexpr char kCacheLength[] = "cache_length";
inline constexpr char kLogitsIndex[] = "logits_index";
inline constexpr char kLogits[] = "logits";

// The decoder's cache; {layer} stands for the number of a layer, from 0.
inline constexpr char kPastKey[] = "past_key_values.{layer}.key";
inline constexpr char kPastValue[] = "past_key_values.{layer}.value";
inline constexpr char kPresentKey[] = "present.{layer}.key";
inline constexpr char kPresentValue[] = "present.{layer}.value";

// Documents of a bundle, and the versions of their schemas.
inline constexpr char kContractFile[] = "contract.json";
inline constexpr char kPipelineFile[] = "pipeline.json";
inline constexpr char kManifestFile[] = "manifest.json";
inline constexpr int kContractSchemaVersion = 1;
inline constexpr int kPipelineSchemaVersion = 1;
inline constexpr int kManifestSchemaVersion = 2;
inline constexpr int kOpset = 24;
inline constexpr char kLocalReports[] = "report/local";

}  // namespace r1v::contract
