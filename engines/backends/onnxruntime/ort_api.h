// ONNX Runtime's C ABI, as far as it is used here: functions by their positions in the table `OrtApi`.
//
// No registry has ONNX Runtime's headers. The table is append-only: "the ordering of these fields MUST not change after
// that version has shipped" (onnxruntime/core/session/onnxruntime_c_api.cc, version 1.25.0), and its size at the end of
// every version is asserted there (101 ends version 1, 126 version 4, 149 version 5, 203 version 10, 209 version 11).
// All that stands here is of API version 11 or earlier (ONNX Runtime 1.11).
#pragma once

#include <cstddef>
#include <cstdint>

namespace r1v::ort {

inline constexpr uint32_t kApiVersion = 11;

struct Env;
struct Status;
struct Session;
struct SessionOptions;
struct RunOptions;
struct Value;
struct MemoryInfo;
struct Allocator;
struct TypeInfo;
struct TensorInfo;
struct IoBinding;
struct CudaOptions;
struct TensorRtOptions;

// enum OrtLoggingLevel
enum Severity : int { kVerbose = 0, kInfo = 1, kWarning = 2, kError = 3, kFatal = 4 };
// enum ONNXTensorElementDataType
enum DataType : int { kFloat = 1, kInt8 = 3, kInt64 = 7, kFloat16 = 10, kBFloat16 = 16 };
// enum OrtAllocatorType, enum OrtMemType
enum AllocatorType : int { kDeviceAllocator = 0, kArenaAllocator = 1 };
enum MemoryType : int { kDefaultMemory = 0 };

// (position, name, result, parameters)
#define R1V_ORT_FUNCTIONS(X)                                                                                      \
  X(2, GetErrorMessage, const char*, (const Status*))                                                             \
  X(3, CreateEnv, Status*, (Severity, const char* log_id, Env**))                                                 \
  X(8, CreateSessionFromArray, Status*, (const Env*, const void*, size_t, const SessionOptions*, Session**))      \
  X(9, Run, Status*,                                                                                              \
    (Session*, const RunOptions*, const char* const* input_names, const Value* const* inputs, size_t input_count, \
     const char* const* output_names, size_t output_count, Value** outputs))                                      \
  X(10, CreateSessionOptions, Status*, (SessionOptions**))                                                        \
  X(22, SetSessionLogSeverityLevel, Status*, (SessionOptions*, int))                                              \
  X(24, SetIntraOpNumThreads, Status*, (SessionOptions*, int))                                                    \
  X(30, SessionGetInputCount, Status*, (const Session*, size_t*))                                                 \
  X(31, SessionGetOutputCount, Status*, (const Session*, size_t*))                                                \
  X(33, SessionGetInputTypeInfo, Status*, (const Session*, size_t, TypeInfo**))                                   \
  X(34, SessionGetOutputTypeInfo, Status*, (const Session*, size_t, TypeInfo**))                                  \
  X(36, SessionGetInputName, Status*, (const Session*, size_t, Allocator*, char**))                               \
  X(37, SessionGetOutputName, Status*, (const Session*, size_t, Allocator*, char**))                              \
  X(39, CreateRunOptions, Status*, (RunOptions**))                                                                \
  X(48, CreateTensorAsOrtValue, Status*, (Allocator*, const int64_t* shape, size_t, DataType, Value**))           \
  X(49, CreateTensorWithDataAsOrtValue, Status*,                                                                  \
    (const MemoryInfo*, void* data, size_t bytes, const int64_t* shape, size_t, DataType, Value**))               \
  X(51, GetTensorMutableData, Status*, (Value*, void**))                                                          \
  X(55, CastTypeInfoToTensorInfo, Status*, (const TypeInfo*, const TensorInfo**))                                 \
  X(60, GetTensorElementType, Status*, (const TensorInfo*, DataType*))                                            \
  X(61, GetDimensionsCount, Status*, (const TensorInfo*, size_t*))                                                \
  X(62, GetDimensions, Status*, (const TensorInfo*, int64_t*, size_t))                                            \
  X(65, GetTensorTypeAndShape, Status*, (const Value*, TensorInfo**))                                             \
  X(68, CreateMemoryInfo, Status*, (const char* name, AllocatorType, int device, MemoryType, MemoryInfo**))       \
  X(69, CreateCpuMemoryInfo, Status*, (AllocatorType, MemoryType, MemoryInfo**))                                  \
  X(76, AllocatorFree, Status*, (Allocator*, void*))                                                              \
  X(78, GetAllocatorWithDefaultOptions, Status*, (Allocator**))                                                   \
  X(93, ReleaseStatus, void, (Status*))                                                                           \
  X(94, ReleaseMemoryInfo, void, (MemoryInfo*))                                                                   \
  X(95, ReleaseSession, void, (Session*))                                                                         \
  X(96, ReleaseValue, void, (Value*))                                                                             \
  X(97, ReleaseRunOptions, void, (RunOptions*))                                                                   \
  X(98, ReleaseTypeInfo, void, (TypeInfo*))                                                                       \
  X(99, ReleaseTensorTypeAndShapeInfo, void, (TensorInfo*))                                                       \
  X(100, ReleaseSessionOptions, void, (SessionOptions*))                                                          \
  X(125, GetAvailableProviders, Status*, (char***, int*))                                                         \
  X(126, ReleaseAvailableProviders, Status*, (char**, int))                                                       \
  X(130, AddSessionConfigEntry, Status*, (SessionOptions*, const char* key, const char* value))                   \
  X(131, CreateAllocator, Status*, (const Session*, const MemoryInfo*, Allocator**))                              \
  X(132, ReleaseAllocator, void, (Allocator*))                                                                    \
  X(133, RunWithBinding, Status*, (Session*, const RunOptions*, const IoBinding*))                                \
  X(134, CreateIoBinding, Status*, (Session*, IoBinding**))                                                       \
  X(135, ReleaseIoBinding, void, (IoBinding*))                                                                    \
  X(136, BindInput, Status*, (IoBinding*, const char* name, const Value*))                                        \
  X(137, BindOutput, Status*, (IoBinding*, const char* name, const Value*))                                       \
  X(165, AddRunConfigEntry, Status*, (RunOptions*, const char* key, const char* value))                           \
  X(170, SessionOptionsAppendExecutionProvider_TensorRT_V2, Status*, (SessionOptions*, const TensorRtOptions*))   \
  X(171, CreateTensorRTProviderOptions, Status*, (TensorRtOptions**))                                             \
  X(172, UpdateTensorRTProviderOptions, Status*,                                                                  \
    (TensorRtOptions*, const char* const* keys, const char* const* values, size_t))                               \
  X(174, ReleaseTensorRTProviderOptions, void, (TensorRtOptions*))                                                \
  X(204, SessionOptionsAppendExecutionProvider_CUDA_V2, Status*, (SessionOptions*, const CudaOptions*))           \
  X(205, CreateCUDAProviderOptions, Status*, (CudaOptions**))                                                     \
  X(206, UpdateCUDAProviderOptions, Status*,                                                                      \
    (CudaOptions*, const char* const* keys, const char* const* values, size_t))                                   \
  X(208, ReleaseCUDAProviderOptions, void, (CudaOptions*))

// The functions, by their names.
struct Api {
#define R1V_ORT_MEMBER(position, name, result, parameters) result(*name) parameters = nullptr;
  R1V_ORT_FUNCTIONS(R1V_ORT_MEMBER)
#undef R1V_ORT_MEMBER
};

// OrtApiBase: two functions, which can never change.
struct ApiBase {
  void* const* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

}  // namespace r1v::ort
