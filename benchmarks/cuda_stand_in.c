/* A stand-in for the CUDA libraries on a machine without a GPU: enough for ONNX Runtime's CUDA provider to be loaded, to
   list its kernels and to open sessions. Memory of the "GPU" is the host's; kernels are launched into nothing, so that
   nothing can be computed. onnxruntime_cuda.py adds every other symbol that the provider asks for: functions that return
   success. Signatures are those of the CUDA 13 runtime, with pointers for its opaque types. */

#include <stdlib.h>
#include <string.h>

typedef int Status;
typedef void *Handle;

enum { MULTIPROCESSORS = 16, MAJOR = 75, MINOR = 76, WARP_SIZE = 10, SHARED_MEMORY_OPT_IN = 97 }; /* cudaDeviceAttr */

struct Properties { /* the beginning of cudaDeviceProp, up to what is asked for */
    char name[256], uuid[16], luid[8];
    unsigned node_mask;
    size_t global_memory, shared_memory;
    int registers, warp_size;
    size_t pitch;
    int threads, block[3], grid[3];
    size_t constant_memory;
    int major, minor;
    size_t texture_alignment, texture_pitch;
    int multiprocessors;
};

static char registered[64];

static Status handle(Handle *out) { *out = calloc(1, 64); return 0; }
static Status allocate(Handle *out, size_t size) { *out = malloc(size ? size : 1); return 0; }
static Status nothing(void) { return 0; }

Status cudaGetDeviceCount(int *count) { *count = 1; return 0; }
Status cudaGetDevice(int *device) { *device = 0; return 0; }
Status cudaRuntimeGetVersion(int *version) { *version = 13000; return 0; }
Status cudaDriverGetVersion(int *version) { *version = 13000; return 0; }

Status cudaGetDeviceProperties(struct Properties *properties, int device) {
    struct Properties hopper = {
        .name = "stand-in", .global_memory = 80ul << 30, .shared_memory = 49152, .registers = 65536, .warp_size = 32,
        .pitch = 2147483647, .threads = 1024, .block = {1024, 1024, 64}, .grid = {2147483647, 65535, 65535},
        .constant_memory = 65536, .major = 9, .minor = 0, .multiprocessors = 132,
    };
    *properties = hopper;
    return 0;
}

Status cudaDeviceGetAttribute(int *value, int attribute, int device) {
    switch (attribute) {
        case MULTIPROCESSORS: *value = 132; break;
        case MAJOR: *value = 9; break;
        case MINOR: *value = 0; break;
        case WARP_SIZE: *value = 32; break;
        case SHARED_MEMORY_OPT_IN: *value = 232448; break;
        default: *value = 1024;
    }
    return 0;
}

Status cudaMalloc(Handle *out, size_t size) { return allocate(out, size); }
Status cudaMallocHost(Handle *out, size_t size) { return allocate(out, size); }
Status cudaHostAlloc(Handle *out, size_t size, unsigned flags) { return allocate(out, size); }
Status cudaMallocFromPoolAsync(Handle *out, size_t size, Handle pool, Handle stream) { return allocate(out, size); }
Status cudaFree(Handle memory) { free(memory); return 0; }
Status cudaFreeHost(Handle memory) { free(memory); return 0; }
Status cudaFreeAsync(Handle memory, Handle stream) { free(memory); return 0; }
Status cudaMemGetInfo(size_t *unused, size_t *total) { *unused = *total = 80ul << 30; return 0; }

Status cudaMemcpy(Handle to, Handle from, size_t size, int kind) { memcpy(to, from, size); return 0; }
Status cudaMemcpyAsync(Handle to, Handle from, size_t size, int kind, Handle stream) { memcpy(to, from, size); return 0; }
Status cudaMemcpy2DAsync(char *to, size_t to_pitch, char *from, size_t from_pitch, size_t width, size_t height, int kind,
                         Handle stream) {
    for (size_t row = 0; row < height; row++) memcpy(to + row * to_pitch, from + row * from_pitch, width);
    return 0;
}
Status cudaMemset(Handle memory, int value, size_t size) { memset(memory, value, size); return 0; }
Status cudaMemsetAsync(Handle memory, int value, size_t size, Handle stream) { memset(memory, value, size); return 0; }

Status cudaStreamCreate(Handle *stream) { return handle(stream); }
Status cudaStreamCreateWithFlags(Handle *stream, unsigned flags) { return handle(stream); }
Status cudaStreamIsCapturing(Handle stream, int *capturing) { *capturing = 0; return 0; }
Status cudaEventCreate(Handle *event) { return handle(event); }
Status cudaEventCreateWithFlags(Handle *event, unsigned flags) { return handle(event); }
Status cudaMemPoolCreate(Handle *pool, Handle properties) { return handle(pool); }
Status cudaFuncGetAttributes(Handle attributes, Handle function) { memset(attributes, 0, 64); return 0; }
Status cudaPointerGetAttributes(Handle attributes, Handle pointer) { memset(attributes, 0, 24); return 0; }
Status cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, Handle function, int size, size_t shared,
                                                              unsigned flags) {
    *blocks = 1;
    return 0;
}
Status cudaGetDriverEntryPointByVersion(char *symbol, Handle *function, unsigned version, unsigned long long flags,
                                        int *status) {
    *function = (Handle)nothing;
    if (status) *status = 0;
    return 0;
}
const char *cudaGetErrorName(Status error) { return "stand-in"; }
const char *cudaGetErrorString(Status error) { return "stand-in"; }
Handle *__cudaRegisterFatBinary(Handle binary) { return (Handle *)registered; }

Status cublasCreate_v2(Handle *out) { return handle(out); }
Status cublasLtCreate(Handle *out) { return handle(out); }
Status cublasGetMathMode(Handle library, int *mode) { *mode = 0; return 0; }
const char *cublasGetStatusName(Status status) { return "stand-in"; }
const char *cublasGetStatusString(Status status) { return "stand-in"; }
Status cudnnCreate(Handle *out) { return handle(out); }

int getInferLibVersion(void) { return 101400; }
