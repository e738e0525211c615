// The program `r1v`: run, verify and bench.
#include <cstdio>

#include "cli/bench.h"
#include "cli/json_answer.h"
#include "cli/options.h"
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

// Shows an error, to people on stderr or as JSON on stdout, and returns its exit code.
int report(const r1v::api::Error& error, bool json) {
  if (json) {
    std::printf("%s\n", json_text(error_json(error, exit_code(error.status))).c_str());
  } else {
    std::fprintf(stderr, "error: %s\n", error.message.c_str());
  }
  return exit_code(error.status);
}

}  // namespace

int main(int argc, char** argv) {
  Arguments arguments;
  if (const std::optional<int> code = parse(argc, argv, &arguments)) return *code;
  const bool json = arguments.command == Command::kRun && arguments.run.format == "json";
  try {
    switch (arguments.command) {
      case Command::kRun: run(arguments.run); break;
      case Command::kBench: bench(arguments.bench); break;
      case Command::kVerify: verify(arguments.verify_bundle); break;
    }
    return 0;
  } catch (const Failure& failure) {
    return report(failure.error, json);
  } catch (const std::exception& error) {
    return report({R1V_INTERNAL_ERROR, error.what()}, json);
  }
}
