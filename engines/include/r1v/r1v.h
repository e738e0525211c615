/* libr1v: answers questions about images from a bundle of r1v-export.
 *
 * Every function that can fail returns an r1v_status; r1v_error_message() of the same thread then says what, where,
 * expected, found and fix. No exception leaves the library. Texts are UTF-8; what the library returns is its own and
 * lives as long as the object it came from.
 *
 * Structs begin with struct_size. Call their r1v_..._init function with sizeof of the struct before anything else:
 * fields are only ever added at the end, and a library takes the defaults for those that a caller compiled earlier does
 * not know. Handles are opaque.
 *
 * Threads: an engine may be used by any number of threads at a time. A request is for one thread at a time, but for
 * r1v_request_cancel, which any thread may call while the request is not freed.
 */
#ifndef R1V_R1V_H
#define R1V_R1V_H

#include <stddef.h>
#include <stdint.h>

#if defined(R1V_BUILDING)
#define R1V_API __attribute__((visibility("default")))
#else
#define R1V_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum r1v_status {
  R1V_OK = 0,
  R1V_USAGE_ERROR = 1,      /* a call or an option that cannot be */
  R1V_BUNDLE_ERROR = 2,     /* a bundle that is incomplete, altered, or of another schema version */
  R1V_INPUT_ERROR = 3,      /* an image, prompt or text that cannot be used */
  R1V_GRAPH_ERROR = 4,      /* a graph that fails, or gives numbers that are not finite */
  R1V_CAPABILITY_ERROR = 5, /* what this machine or this build lacks */
  R1V_CANCELLED_ERROR = 6,  /* the caller asked for the end */
  R1V_MEMORY_ERROR = 7,     /* memory that there is not */
  R1V_INTERNAL_ERROR = 8,   /* an error of the library itself */
  R1V_QUEUE_FULL_ERROR = 9  /* as many requests wait as may: try again later */
} r1v_status;

typedef enum r1v_finish_reason {
  R1V_FINISH_STOP = 0,      /* a stop token or string */
  R1V_FINISH_LENGTH = 1,    /* max_new_tokens */
  R1V_FINISH_CONTEXT = 2,   /* no position of the model left */
  R1V_FINISH_CANCELLED = 3, /* r1v_request_cancel */
  R1V_FINISH_DEADLINE = 4   /* its time was over */
} r1v_finish_reason;

typedef struct r1v_engine r1v_engine;
typedef struct r1v_request r1v_request;

/* Semantic version of the library, "1.2.3". */
R1V_API const char* r1v_version(void);

/* Message of the last call of this thread that failed; "" if none has. Valid until the thread's next call. */
R1V_API const char* r1v_error_message(void);

/* Name of a status, as the Python package has it: "BundleError"; "ok". */
R1V_API const char* r1v_status_name(r1v_status status);

/* ---- engine ---- */

typedef struct r1v_engine_options {
  size_t struct_size;
  const char* target;              /* of the bundle; NULL for the first that this library can run */
  const char* device;              /* "cpu", "cuda" or "tensorrt": what runs the graphs; NULL is "cpu"; plans: "cuda" */
  const char* onnxruntime_library; /* ONNX Runtime's library or its folder; NULL: R1V_ONNXRUNTIME, else the loader's */
  int32_t gpu;                     /* which one of several */
  int32_t threads;                 /* of one operator on the CPU; 0 for all cores that this process may use */
  int32_t verify;                  /* not 0: first compare every file with the manifest */
  int64_t max_rows;                /* requests that are decoded together */
  int64_t max_queued;              /* requests that wait for a row; one more is refused */
  int64_t cache_bytes;             /* of the key-value cache, at most */
  int64_t image_cache_bytes;       /* of embeddings kept for images shown again; 0 keeps none */
  int64_t prefill_chunk;           /* prompt tokens of a step, at most: bounds the wait of all others */
  const char* tensorrt_library;    /* TensorRT's library or its folder; NULL: R1V_TENSORRT, else the loader's */
  const char* engine;              /* folder of `r1v-export engine`: TensorRT-LLM decodes; NULL: the bundle's own */
  const char* tensorrt_llm_library; /* its library or its folder; NULL: R1V_TENSORRT_LLM, else the loader's */
  int32_t keep_prefixes;            /* not 0: what was computed of a prompt is kept for those that begin alike */
  /* Called by the thread that opens the engine, before it is open, with what of the bundle cannot be used here and why,
     as a plan whose library cannot be loaded and which another engine stands in for, and with what was asked for that
     no gate has compared. `message` lives until it returns;
     it throws nothing. NULL: warnings are dropped. */
  void (*warn)(void* warn_context, const char* message);
  void* warn_context; /* handed to it */
  /* What encodes images for an engine of ONNX Runtime: "auto" or NULL for products in 8 bits where the bundle has them,
     a gate of the build has compared them with PyTorch, and an x86 CPU answers, else its own precision; "onnxruntime"
     for its own precision; "onnxruntime-int8" for 8 bits whatever a gate says. Other engines have no choice. */
  const char* vision_target;
} r1v_engine_options;

R1V_API void r1v_engine_options_init(r1v_engine_options* options, size_t struct_size);

/* Opens a bundle. `options` may be NULL. *engine is NULL where this fails. */
R1V_API r1v_status r1v_engine_open(const char* bundle, const r1v_engine_options* options, r1v_engine** engine);

/* Frees an engine, after all its requests; NULL is allowed. */
R1V_API void r1v_engine_free(r1v_engine* engine);

/* What runs the graphs, in words. */
R1V_API const char* r1v_engine_description(const r1v_engine* engine);

/* What people should know of how images are encoded, in a line; "" if nothing. */
R1V_API const char* r1v_engine_note(const r1v_engine* engine);

/* Tokens of a prompt and its answer, at most. */
R1V_API int64_t r1v_engine_max_positions(const r1v_engine* engine);

typedef struct r1v_stats {
  size_t struct_size;
  int64_t queued, running;   /* requests now */
  int64_t rows, cache_bytes; /* of the key-value cache now */
  /* Counted since the engine was opened: */
  int64_t refused, finished, failed; /* requests */
  int64_t prompt_tokens;             /* of all prompts that were given a row */
  int64_t reused_tokens;             /* of these, taken from the cache of another request */
  int64_t generated_tokens;
  int64_t decode_steps, decoded_rows; /* their quotient is how many requests were decoded together */
  int64_t image_hits, image_misses;   /* images whose embeddings were kept, and that were encoded */
  int64_t prefix_hits, prefix_misses; /* requests that found a beginning in the cache, and that found none */
  int64_t preempted;                  /* times that a request gave up its row for an older one */
  int64_t vision_runs, vision_tiles;  /* their quotient is how many tiles were encoded together */
  /* Now: */
  int64_t kept_rows;         /* rows of finished requests, kept for those that begin alike */
  int64_t image_cache_bytes; /* of kept embeddings */
} r1v_stats;

R1V_API void r1v_stats_init(r1v_stats* stats, size_t struct_size);

/* What an engine does now, and has counted. */
R1V_API r1v_status r1v_engine_stats(const r1v_engine* engine, r1v_stats* stats);

/* Compares every file of a bundle with its manifest. *files and *bytes (may be NULL) are what it has. */
R1V_API r1v_status r1v_verify(const char* bundle, int64_t* files, int64_t* bytes);

/* ---- requests ---- */

typedef struct r1v_image {
  size_t struct_size;
  const char* path;    /* a file: JPEG, PNG or WebP; or NULL, and */
  const uint8_t* data; /* the bytes of one, or where width is not 0, its pixels: RGB, row by row */
  size_t size;         /* bytes of `data` */
  int32_t width, height;
} r1v_image;

R1V_API void r1v_image_init(r1v_image* image, size_t struct_size);

typedef struct r1v_turn {
  size_t struct_size;
  const char* role;        /* "system", "user" or "assistant" */
  const char* text;        /* an earlier answer: its text without the reasoning */
  const r1v_image* images; /* of a user's turn; they stand where the text has the placeholder, else before it */
  size_t image_count;
} r1v_turn;

R1V_API void r1v_turn_init(r1v_turn* turn, size_t struct_size);

typedef struct r1v_sampling {
  size_t struct_size;
  int64_t max_new_tokens;
  double temperature; /* 0 takes the likeliest token */
  double top_p;       /* 1 is off */
  int64_t top_k;      /* 0 is off */
  double min_p;       /* 0 is off */
  double repetition_penalty, presence_penalty, frequency_penalty;
  uint64_t seed;
  int32_t random_seed;     /* not 0: fresh entropy instead of `seed` */
  const char* const* stop; /* the answer ends before the first of these */
  size_t stop_count;
  int32_t stop_in_reasoning; /* not 0: search the reasoning for them, too */
  int32_t ignore_eos;        /* not 0: the model's stop tokens end no answer */
  const int64_t* bias_ids;   /* tokens, each once, and what is added to their logits before all else: -100 to 100 */
  const double* biases;
  size_t bias_count;
  int64_t max_reasoning_tokens; /* the reasoning is ended then, by its end tag; -1 for never */
  int64_t logprobs; /* report the log probability of each token, and those of so many likeliest ones, 20 at most; they
                       are the model's own, before anything of the above; -1 for none */
} r1v_sampling;

/* Sets what the checkpoint recommends, and seed 0. */
R1V_API r1v_status r1v_sampling_init(const r1v_engine* engine, r1v_sampling* sampling, size_t struct_size);

/* The same with the likeliest token always, whatever the checkpoint recommends; of it, only max_new_tokens. */
R1V_API r1v_status r1v_sampling_init_greedy(const r1v_engine* engine, r1v_sampling* sampling, size_t struct_size);

typedef struct r1v_request_options {
  size_t struct_size;
  const r1v_turn* turns; /* a system's if any, then user and assistant in alternation, a user's last */
  size_t turn_count;
  const r1v_sampling* sampling; /* NULL for the checkpoint's */
  int32_t think;                /* not 0: let the model think before it answers, if it knows how; set by init */
  int32_t grounding;            /* not 0: let <ref>, <box> and <quad> through in questions and answers */
  int32_t raw;                  /* not 0: continue the text of the only turn, without a template */
  const char* client;           /* whose turn it is among waiting clients: a key, an address; NULL for nobody's */
  int64_t timeout_ms;           /* the answer ends then with what it has; 0 for never */
} r1v_request_options;

R1V_API void r1v_request_options_init(r1v_request_options* options, size_t struct_size);

/* Begins to answer a conversation, together with all other requests of the engine. What `options` points to need not
 * live on. *request is NULL where this fails. */
R1V_API r1v_status r1v_request_start(r1v_engine* engine, const r1v_request_options* options, r1v_request** request);

typedef struct r1v_event {
  size_t struct_size;
  int64_t token_id;      /* -1 in an event without a token, as that of a cancelled answer */
  const char* reasoning; /* what became certain of the reasoning, and of the answer; each may be "" */
  size_t reasoning_size; /* bytes */
  const char* text;
  size_t text_size;
  int32_t finished; /* not 0: this was the last event; r1v_request_answer has the whole */
  /* Where the sampling asks for them, log probabilities of the token and of the likeliest ones, the likeliest first;
     else NULL: */
  const double* logprob;
  const int64_t* top_ids;
  const double* top_logprobs;
  size_t top_count;
} r1v_event;

R1V_API void r1v_event_init(r1v_event* event, size_t struct_size);

/* Waits for the next event; its texts live until the next call. After the last event: R1V_USAGE_ERROR. */
R1V_API r1v_status r1v_request_next(r1v_request* request, r1v_event* event);

/* Ends the answer with what it has, before its next token. */
R1V_API void r1v_request_cancel(r1v_request* request);

typedef struct r1v_answer {
  size_t struct_size;
  const char* reasoning;
  const char* text;
  int32_t reasoning_complete; /* 0 where the answer ended inside the reasoning */
  r1v_finish_reason finish_reason;
  const int64_t* token_ids; /* all generated tokens, a stop token included */
  size_t token_count;
  int64_t reasoning_tokens; /* of them, those that made the reasoning and its end tag */
  int64_t prompt_tokens;    /* image tokens included */
  /* Wall-clock time by stage; prefill is up to the first token, decode all steps after it. */
  double preprocess_ms, vision_ms, projector_ms, embed_ms, prefill_ms, decode_ms;
  double queue_ms;       /* waiting for a row */
  int64_t decode_steps;  /* after prefill */
  int64_t reused_tokens; /* of the prompt, taken from the cache of another request */
  /* Where the sampling asks for them, else NULL, of each token its log probability, and top_count times the likeliest
     ones: token t has top_ids and top_logprobs t * top_count and the following. */
  const double* logprobs;
  const int64_t* top_ids;
  const double* top_logprobs;
  size_t top_count;
} r1v_answer;

R1V_API void r1v_answer_init(r1v_answer* answer, size_t struct_size);

/* The whole answer, after its last event. What it points to lives as long as the request. */
R1V_API r1v_status r1v_request_answer(r1v_request* request, r1v_answer* answer);

/* Frees a request, finished or not; NULL is allowed. */
R1V_API void r1v_request_free(r1v_request* request);

#ifdef __cplusplus
}
#endif

#endif
