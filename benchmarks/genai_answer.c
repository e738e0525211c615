/* Answers a prompt with onnxruntime-genai's C API, for libr1v.py. Its wheel has no header: what is used of it is declared
   here.
     genai_answer MODEL THREADS CAPACITY NEW_TOKENS RUNS TOKEN_ID...
   Says "first" at the first token of all, and a line for each of RUNS answers after the first, which warms up (the first
   alone if RUNS is 0): milliseconds to the first and to the last token, and the new tokens. Then it waits for the end of
   its input, so that its memory can be looked at. */

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

typedef struct OgaResult OgaResult;
typedef struct OgaConfig OgaConfig;
typedef struct OgaModel OgaModel;
typedef struct OgaGeneratorParams OgaGeneratorParams;
typedef struct OgaGenerator OgaGenerator;

const char *OgaResultGetError(const OgaResult *);
OgaResult *OgaCreateConfig(const char *, OgaConfig **);
OgaResult *OgaConfigOverlay(OgaConfig *, const char *);
OgaResult *OgaCreateModelFromConfig(const OgaConfig *, OgaModel **);
OgaResult *OgaCreateGeneratorParams(const OgaModel *, OgaGeneratorParams **);
OgaResult *OgaGeneratorParamsSetSearchNumber(OgaGeneratorParams *, const char *, double);
OgaResult *OgaGeneratorParamsSetSearchBool(OgaGeneratorParams *, const char *, bool);
void OgaDestroyGeneratorParams(OgaGeneratorParams *);
OgaResult *OgaCreateGenerator(const OgaModel *, const OgaGeneratorParams *, OgaGenerator **);
void OgaDestroyGenerator(OgaGenerator *);
OgaResult *OgaGenerator_AppendTokens(OgaGenerator *, const int32_t *, size_t);
OgaResult *OgaGenerator_GenerateNextToken(OgaGenerator *);
const int32_t *OgaGenerator_GetSequenceData(const OgaGenerator *, size_t);

static void check(OgaResult *result) {
    if (result == NULL) return;
    fprintf(stderr, "onnxruntime-genai: %s\n", OgaResultGetError(result));
    exit(1);
}

static double now_ms(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return 1e3 * (double)time.tv_sec + (double)time.tv_nsec / 1e6;
}

static OgaModel *open_model(const char *folder, const char *threads) {
    OgaConfig *config;
    OgaModel *model;
    char overlay[200];
    snprintf(overlay, sizeof overlay, "{\"model\": {\"decoder\": {\"session_options\": {\"intra_op_num_threads\": %s}}}}",
             threads);
    check(OgaCreateConfig(folder, &config));
    check(OgaConfigOverlay(config, overlay));
    check(OgaCreateModelFromConfig(config, &model));
    return model;
}

static void answer(const OgaModel *model, int capacity, const int32_t *prompt, int length, int new_tokens, int number) {
    double start = now_ms(), first = 0;
    OgaGeneratorParams *params;
    OgaGenerator *generator;
    check(OgaCreateGeneratorParams(model, &params));
    check(OgaGeneratorParamsSetSearchNumber(params, "max_length", capacity));
    check(OgaGeneratorParamsSetSearchBool(params, "do_sample", false));
    check(OgaGeneratorParamsSetSearchBool(params, "past_present_share_buffer", true));
    check(OgaCreateGenerator(model, params, &generator));
    check(OgaGenerator_AppendTokens(generator, prompt, (size_t)length));
    for (int i = 0; i < new_tokens; ++i) {
        check(OgaGenerator_GenerateNextToken(generator));
        if (i > 0) continue;
        first = now_ms();
        if (number == 0) puts("first");
        fflush(stdout);
    }
    double last = now_ms();
    if (number > 0) {
        const int32_t *tokens = OgaGenerator_GetSequenceData(generator, 0);
        printf("%.3f %.3f", first - start, last - start);
        for (int i = 0; i < new_tokens; ++i) printf(" %d", tokens[length + i]);
        puts("");
        fflush(stdout);
    }
    OgaDestroyGenerator(generator);
    OgaDestroyGeneratorParams(params);
}

int main(int argc, char **argv) {
    if (argc < 7) return 2;
    int capacity = atoi(argv[3]), new_tokens = atoi(argv[4]), runs = atoi(argv[5]), length = argc - 6;
    int32_t *prompt = calloc((size_t)length, sizeof *prompt);
    for (int i = 0; i < length; ++i) prompt[i] = atoi(argv[6 + i]);
    OgaModel *model = open_model(argv[1], argv[2]);
    for (int number = 0; number <= runs; ++number) answer(model, capacity, prompt, length, new_tokens, number);
    puts("done");
    fflush(stdout);
    while (getchar() != EOF) continue;
    _Exit(0); /* its own end takes the model apart, which is not measured */
}
