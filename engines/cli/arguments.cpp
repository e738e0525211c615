#include "cli/arguments.h"

#include <CLI/CLI.hpp>

namespace r1v::cli {
namespace {

void add_engine(CLI::App& command, EngineArguments& engine) {
  command.add_option("BUNDLE", engine.bundle, "Folder that r1v-export build wrote.")->required();
  command.add_option("--target", engine.target, "Engine of the bundle. [default: the first that runs here]");
  command.add_option("--vision-target", engine.vision_target,
                     "What encodes images: auto, onnxruntime or onnxruntime-int8. [default: auto, the fastest that was "
                     "compared and runs here]");
  command.add_option("--engine", engine.engine,
                     "Folder of r1v-export engine: TensorRT-LLM decodes. [default: an engine of the bundle]");
  command.add_option("--device", engine.device, "cpu, cuda or tensorrt.")->capture_default_str();
  command.add_option("--gpu", engine.gpu, "Which one of several.")->capture_default_str();
  command.add_option("--threads", engine.threads, "CPU threads. [default: the cores that this process may use]");
  command.add_option("--onnxruntime", engine.onnxruntime,
                     "ONNX Runtime's library or its folder. [default: R1V_ONNXRUNTIME, else the loader's]");
  command.add_option("--tensorrt", engine.tensorrt,
                     "TensorRT's library or its folder. [default: R1V_TENSORRT, else the loader's]");
  command.add_option("--tensorrt-llm", engine.tensorrt_llm,
                     "TensorRT-LLM's library or its folder. [default: R1V_TENSORRT_LLM, else the loader's]");
}

void add_sampling(CLI::App& command, SamplingArguments& sampling) {
  command.add_flag("--greedy", sampling.greedy, "Take the likeliest token, whatever the checkpoint recommends.");
  command.add_option("--max-new-tokens", sampling.max_new_tokens,
                     "Longest answer. [default: the checkpoint's, or 512]");
  command.add_option("--temperature", sampling.temperature, "0 is greedy. [default: the checkpoint's, or 0]");
  command.add_option("--top-p", sampling.top_p, "Draw from this much probability.");
  command.add_option("--top-k", sampling.top_k, "Draw from this many tokens; 0 is off.");
  command.add_option("--min-p", sampling.min_p, "Draw from tokens with this share of the likeliest one's probability.");
  command.add_option("--repetition-penalty", sampling.repetition_penalty, "Above 1 repeats less.");
  command.add_option("--presence-penalty", sampling.presence_penalty, "Taken off tokens of the answer.");
  command.add_option("--frequency-penalty", sampling.frequency_penalty, "The same, for each time.");
  command.add_option("--seed", sampling.seed, "Random seed for sampling.")->capture_default_str();
  command.add_option("--stop", sampling.stop, "End the answer before this text; repeat for several.")
      ->allow_extra_args(false);
  command.add_flag("--stop-in-reasoning", sampling.stop_in_reasoning, "Search the reasoning for --stop too.");
  command.add_option("--max-reasoning-tokens", sampling.max_reasoning_tokens, "End the reasoning after this many.")
      ->check(CLI::NonNegativeNumber);
}

void add_run(CLI::App& command, RunArguments& run) {
  add_engine(command, run.engine);
  command.add_option("QUESTION", run.question, "What to ask; - is read from stdin.");
  command.add_option("--image", run.images, "Image: file, - for stdin, or data URL; repeatable.")
      ->allow_extra_args(false);
  command.add_flag("--no-think", run.no_think, "Answer without reasoning.");
  command.add_flag("--grounding", run.grounding, "Let <ref>, <box> and <quad> through in questions and answers.");
  command.add_flag("--answer-only", run.answer_only, "Do not print the reasoning.");
  command.add_flag("--chat", run.chat, "Hold a conversation; questions come line by line from stdin.");
  command.add_option("--logprobs", run.sampling.logprobs,
                     "With --format json: log probabilities, also of so many likeliest tokens.");
  command.add_option("--format", run.format, "How to print the result: text or json.")
      ->capture_default_str()
      ->check(CLI::IsMember({"text", "json"}));
  command.add_flag("--verify", run.engine.verify, "First check the bundle's hashes, as verify does.");
  add_sampling(command, run.sampling);
}

void add_bench(CLI::App& command, BenchArguments& bench) {
  add_engine(command, bench.engine);
  command.add_option("--image", bench.image, "Ask about this image. [default: none]");
  command.add_option("--question", bench.question, "What to ask.")->capture_default_str();
  command.add_option("--tokens", bench.tokens, "Tokens of each answer.")
      ->capture_default_str()
      ->check(CLI::Range(2, 1 << 24));
  command.add_option("--runs", bench.runs, "Runs after the warm-up; medians count.")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000));
}

}  // namespace

std::optional<int> parse(int argc, char** argv, Arguments* arguments) {
  CLI::App app("Answers questions about images from a bundle of r1v-export.");
  app.set_version_flag("--version", std::string("r1v ") + r1v_version());
  app.require_subcommand(1);
  CLI::App* run = app.add_subcommand("run", "Ask a bundle about images.");
  add_run(*run, arguments->run);
  CLI::App* bench = app.add_subcommand("bench", "Measure a bundle's engine.");
  add_bench(*bench, arguments->bench);
  CLI::App* verify = app.add_subcommand("verify", "Recompute a bundle's hashes.");
  verify->add_option("BUNDLE", arguments->verify_bundle, "Folder that r1v-export build wrote.")->required();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  arguments->command = run->parsed() ? Command::kRun : bench->parsed() ? Command::kBench : Command::kVerify;
  return std::nullopt;
}

}  // namespace r1v::cli
