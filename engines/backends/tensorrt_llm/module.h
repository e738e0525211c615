/* What libr1v_tensorrt_llm.so gives libr1v: TensorRT-LLM's executor behind a few functions.
 *
 * TensorRT-LLM's API is C++ classes whose layouts change from version to version, and whose functions cannot be found
 * by a name. So what is compiled with its headers is a module of its own. libr1v opens TensorRT-LLM's library at run
 * time, with its symbols for all to see, and then the module, whose undefined symbols are those: neither libr1v nor the
 * module is linked with TensorRT-LLM, and a libr1v without it needs nothing of NVIDIA's.
 *
 * No exception and no class crosses this boundary. A function that fails returns 0 (or NULL), with its message in the
 * caller's buffer. One thread at a time.
 */
#ifndef R1V_TENSORRT_LLM_MODULE_H
#define R1V_TENSORRT_LLM_MODULE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Of this header; a module of another one is refused. */
#define R1V_TRTLLM_MODULE_VERSION 1

typedef enum r1v_trtllm_dtype {
  R1V_TRTLLM_FLOAT32 = 0,
  R1V_TRTLLM_FLOAT16 = 1,
  R1V_TRTLLM_BFLOAT16 = 2
} r1v_trtllm_dtype;

/* Why an answer ended. */
typedef enum r1v_trtllm_reason {
  R1V_TRTLLM_NOT_FINISHED = 0,
  R1V_TRTLLM_END_ID = 1,
  R1V_TRTLLM_STOP_WORDS = 2,
  R1V_TRTLLM_LENGTH = 3,
  R1V_TRTLLM_CANCELLED = 4,
  R1V_TRTLLM_OTHER = 5
} r1v_trtllm_reason;

typedef struct r1v_trtllm_message {
  char text[2000]; /* ends with a null byte */
} r1v_trtllm_message;

typedef struct r1v_trtllm_request {
  const int32_t* token_ids; /* from the vocabulary's size on, rows of the table */
  size_t token_count;
  int32_t max_tokens;
  const int32_t* stop_ids; /* tokens that end the answer; the executor leaves out the first one that it generates */
  size_t stop_count;
  int32_t greedy; /* not 0: the likeliest token always; what follows, up to the seed, does nothing */
  int32_t top_k;  /* 0 is off */
  float top_p, temperature;
  uint64_t seed;
  float repetition_penalty; /* 1 is off */
  const void* table;        /* [rows, hidden] of this type; NULL where the prompt has no images */
  int64_t rows, hidden;
  r1v_trtllm_dtype dtype;
  const uint64_t* extra_ids; /* one for each token, where there is a table */
} r1v_trtllm_request;

typedef struct r1v_trtllm_response {
  uint64_t request;
  const int32_t* token_ids; /* generated since the last one */
  size_t token_count;
  int32_t is_final;
  r1v_trtllm_reason reason; /* where it is final */
  const char* error;        /* NULL if there is none; else the request has ended with it */
} r1v_trtllm_response;

typedef struct r1v_trtllm_options {
  const char* engine;   /* folder */
  int32_t reuse_blocks; /* not 0: compute prompts that begin alike once */
  const char* worker;   /* program of each rank's process; NULL for an engine of one rank, which runs in this one */
} r1v_trtllm_options;

typedef struct r1v_trtllm_module {
  int32_t module_version;
  const char* headers_version; /* of TensorRT-LLM, that it is compiled with: "1.2.0" */

  void* (*open)(const r1v_trtllm_options* options, r1v_trtllm_message* message);
  void (*close)(void* executor);
  /* Writes the request's number. */
  int32_t (*enqueue)(void* executor, const r1v_trtllm_request* request, uint64_t* number, r1v_trtllm_message* message);
  /* Waits for responses of any request, at most this long. They live until the next call. */
  int32_t (*wait)(void* executor, int64_t milliseconds, const r1v_trtllm_response** responses, size_t* count,
                  r1v_trtllm_message* message);
  void (*cancel)(void* executor, uint64_t number);
} r1v_trtllm_module;

/* The only symbol of the module: `const r1v_trtllm_module* r1v_tensorrt_llm_module(void)`. */
#define R1V_TRTLLM_MODULE_SYMBOL "r1v_tensorrt_llm_module"

#ifdef __cplusplus
}
#endif

#endif
