// What the commands share.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "cli/arguments.h"
#include "r1v/r1v.hpp"

namespace r1v::cli {

// What ends the program: an error's exit code is that of the Python program.
struct Failure {
  api::Error error;
};

[[noreturn]] void fail_usage(const std::string& what);

template <typename T>
T value_of(api::Result<T> result) {
  if (!result) throw Failure{result.error()};
  return std::move(*result);
}

// `change`: options that the command itself decides.
api::Engine open(const EngineArguments& arguments, const std::function<void(r1v_engine_options*)>& change = {});

// The checkpoint's sampling, and options in its place; says on stderr what is in use. `stops` holds its stop strings.
r1v_sampling choose(const SamplingArguments& arguments, const api::Engine& engine, std::vector<const char*>* stops);

// An image by its name: a path, - for standard input, or a data URL.
api::Image image_named(const std::string& name);

// Standard input, at most `limit` bytes.
std::string read_stdin(size_t limit, const std::string& what);

}  // namespace r1v::cli
