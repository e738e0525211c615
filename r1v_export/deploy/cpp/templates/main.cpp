// Asks a bundle of r1v-export about an image, and prints reasoning and answer as they are generated.
// r1v/r1v.hpp has the rest: several images, conversations, sampling, cancellation.
#include <iostream>

#include <r1v/r1v.hpp>

namespace {

constexpr char kBundle[] = "@bundle@";

int fail(const r1v::api::Error& error) {
  std::cerr << "error: " << error.message << std::endl;
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3 && argc != 4) {
    std::cerr << "usage: ask [BUNDLE] IMAGE QUESTION" << std::endl;
    return 2;
  }
  auto engine = r1v::api::Engine::open(argc == 4 ? argv[1] : kBundle);
  if (!engine) return fail(engine.error());
  if (!engine->note().empty()) std::cerr << engine->note() << std::endl;

  r1v::api::Image image;
  image.path = argv[argc - 2];
  bool in_reasoning = false;
  auto answer = engine->answer({{"user", argv[argc - 1], {image}}}, {}, [&](const r1v::api::Event& event) {
    if (!event.reasoning.empty() && !in_reasoning) {
      std::cout << "<think>\n";
      in_reasoning = true;
    }
    std::cout << event.reasoning;
    if (!event.text.empty() && in_reasoning) {
      std::cout << "\n</think>\n";
      in_reasoning = false;
    }
    std::cout << event.text << std::flush;
  });
  if (!answer) return fail(answer.error());
  std::cout << std::endl;

  if (answer->finish_reason != R1V_FINISH_STOP) {
    std::cerr << "(cut off after " << answer->token_ids.size() << " tokens)" << std::endl;
  } else if (!answer->reasoning_complete) {
    std::cerr << "(the model stopped inside its reasoning: there is no answer)" << std::endl;
  }
  if (!std::cout) return fail({R1V_USAGE_ERROR, "The answer cannot be written to stdout."});
}
