// Stands in for CUDA's header of this name: what libr1v uses of it, on the memory of the host.
#pragma once

#include <cstddef>

#define CUDART_VERSION 13000
#define STAND_IN_API __attribute__((visibility("default")))

typedef struct CUstream_st* cudaStream_t;
typedef struct CUgraph_st* cudaGraph_t;
typedef struct CUgraphExec_st* cudaGraphExec_t;

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInsufficientDriver = 35,
  cudaErrorStreamCaptureUnsupported = 900
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2, cudaMemcpyDeviceToDevice = 3 };
enum cudaDeviceAttr { cudaDevAttrComputeCapabilityMajor = 75, cudaDevAttrComputeCapabilityMinor = 76 };
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal = 1 };
enum { cudaStreamNonBlocking = 1 };

extern "C" {
STAND_IN_API cudaError_t cudaGetDeviceCount(int* count);
STAND_IN_API cudaError_t cudaSetDevice(int device);
STAND_IN_API cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
STAND_IN_API cudaError_t cudaGetLastError();
STAND_IN_API const char* cudaGetErrorString(cudaError_t error);
STAND_IN_API cudaError_t cudaMalloc(void** memory, size_t bytes);
STAND_IN_API cudaError_t cudaFree(void* memory);
STAND_IN_API cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t);
STAND_IN_API cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                                           size_t height, cudaMemcpyKind, cudaStream_t);
STAND_IN_API cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t);
STAND_IN_API cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
STAND_IN_API cudaError_t cudaStreamDestroy(cudaStream_t);
STAND_IN_API cudaError_t cudaStreamSynchronize(cudaStream_t);
STAND_IN_API cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode);
STAND_IN_API cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t*);
STAND_IN_API cudaError_t cudaGraphInstantiate(cudaGraphExec_t*, cudaGraph_t, unsigned long long flags);
STAND_IN_API cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t);
STAND_IN_API cudaError_t cudaGraphDestroy(cudaGraph_t);
STAND_IN_API cudaError_t cudaGraphExecDestroy(cudaGraphExec_t);
}
