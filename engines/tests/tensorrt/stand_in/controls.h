// What tests set and see of the GPU that stands in, and what the TensorRT that stands in does on it.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <string>

namespace r1v::stand_in {

struct Controls {
  int gpus = 1;
  bool out_of_memory = false;                // cudaMalloc fails
  bool capturable = true;                    // what a stream does can be captured
  bool running = true;                       // contexts can run
  int captures = 0, launches = 0, runs = 0;  // graphs made, and launched; runs of plans, those in graphs too
  long allocations = 0;                      // of memory that is not freed
  std::string misuse;                        // what no GPU would have borne
};

STAND_IN_API Controls& controls();

// Addresses of the GPU's memory are none that the host can read.
STAND_IN_API bool is_device(const void* address);
STAND_IN_API char* host_address(const void* device_address);

// Has the stream do something, when it is waited for or captured and launched.
STAND_IN_API cudaError_t enqueue(cudaStream_t stream, std::function<void()> work);

}  // namespace r1v::stand_in
