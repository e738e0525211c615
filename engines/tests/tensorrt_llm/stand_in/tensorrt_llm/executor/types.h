// What libr1v uses of TensorRT-LLM's types, written for the tests after the public header of this name.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#define STAND_IN_API __attribute__((visibility("default")))

namespace tensorrt_llm::executor {

using SizeType32 = std::int32_t;
using FloatType = float;
using TokenIdType = std::int32_t;
using VecTokens = std::vector<TokenIdType>;
using BeamTokens = std::vector<VecTokens>;
using IdType = std::uint64_t;
using VecTokenExtraIds = std::vector<IdType>;
using RandomSeedType = std::uint64_t;

enum class DataType { kBOOL, kUINT8, kINT8, kINT32, kINT64, kBF16, kFP8, kFP16, kFP32, kUNKNOWN };

enum class ModelType { kDECODER_ONLY = 0, kENCODER_ONLY = 1, kENCODER_DECODER = 2 };

enum class CommunicationType { kMPI = 0 };

enum class CommunicationMode { kLEADER, kORCHESTRATOR };

enum class FinishReason {
  kNOT_FINISHED = 0,
  kEND_ID = 1,
  kSTOP_WORDS = 2,
  kLENGTH = 3,
  kTIMED_OUT = 4,
  kCANCELLED = 5
};

}  // namespace tensorrt_llm::executor
