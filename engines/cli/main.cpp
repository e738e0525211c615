// The program `r1v`: run, verify and bench.
#include <cstdio>

#include "cli/bench.h"
#include "cli/run.h"

namespace {

using namespace r1v::cli;

// Exit codes of the Python program.
int exit_code(r1v_status status) {
  if (status == R1V_USAGE_ERROR) return 2;
  return status == R1V_CAPABILITY_ERROR ? 4 : 1;
}

void verify(const std::string& bundle) {
  int64_t files = 0, bytes = 0;
  if (const r1v_status status = r1v_verify(bundle.c_str(), &files, &bytes)) throw Failure{r1v::api::last_error(status)};
  std::printf("ok: %lld files, %.1f MB\n", static_cast<long long>(files), static_cast<double>(bytes) / 1e6);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Answers questions about images from a bundle of r1v-export.");
  app.set_version_flag("--version", std::string("r1v ") + r1v_version());
  app.require_subcommand(1);
  RunArguments run_arguments;
  BenchArguments bench_arguments;
  std::string verify_bundle;
  CLI::App* run_command = app.add_subcommand("run", "Ask a bundle about images.");
  run_arguments.add_to(*run_command);
  CLI::App* bench_command = app.add_subcommand("bench", "Measure a bundle's engine.");
  bench_arguments.add_to(*bench_command);
  CLI::App* verify_command = app.add_subcommand("verify", "Recompute a bundle's hashes.");
  verify_command->add_option("BUNDLE", verify_bundle, "Folder that r1v-export build wrote.")->required();
  try {
    app.parse(argc, argv);
    if (run_command->parsed()) run(run_arguments);
    if (bench_command->parsed()) bench(bench_arguments);
    if (verify_command->parsed()) verify(verify_bundle);
    return 0;
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  } catch (const Failure& failure) {
    std::fprintf(stderr, "error: %s\n", failure.error.message.c_str());
    return exit_code(failure.error.status);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
