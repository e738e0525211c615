#include "triton/question.h"

#include "image/data_url.h"
#include "triton/conversation.h"

namespace r1v::triton {
namespace {

constexpr size_t kMaxImages = 64;

Pixels decode(const std::string& content, const Runner& runner) {
  const EncodedImage image{reinterpret_cast<const uint8_t*>(content.data()), content.size(), "image data"};
  return load_image(image, runner.image_policy(), runner.image_limits());
}

Pixels load_url(const std::string& url, const Runner& runner) {
  if (is_data_url(url)) return decode(read_data_url(url), runner);
  throw Error(Code::kInput, "An image's URL cannot be used.", {"", "a data: URL", url.substr(0, 80), ""});
}

// The encoded files or data URLs of a question.
std::vector<std::string> images_of(const RequestInputs& inputs) {
  std::vector<std::string> images;
  for (std::string& image : inputs.texts("image")) {
    if (!image.empty()) images.push_back(std::move(image));
  }
  if (images.size() <= kMaxImages) return images;
  throw Error(Code::kInput, "The request has too many images.",
              {"", "at most " + std::to_string(kMaxImages), std::to_string(images.size()), ""});
}

}  // namespace

Request read_question(const RequestInputs& inputs, const Runner& runner) {
  const std::optional<std::string> question = inputs.text("text_input"), messages = inputs.text("messages");
  const std::optional<std::string> prompt = inputs.text("prompt");
  const std::vector<std::string> images = images_of(inputs);
  Request request;
  request.think = inputs.flag("enable_thinking", true);
  if (int{question.has_value()} + int{messages.has_value()} + int{prompt.has_value()} != 1 ||
      (!question && !images.empty())) {
    throw Error(Code::kInput, "The request is no question and no conversation.",
                {"",
                 "text_input, with image for each image; or messages, with images as data URLs; or prompt, a text that "
                 "is continued",
                 "", ""});
  }
  if (question) {
    request.turns = {{Role::kUser, *question, static_cast<int64_t>(images.size())}};
    for (const std::string& image : images)
      request.images.push_back(is_data_url(image) ? load_url(image, runner) : decode(image, runner));
  } else if (messages) {
    Conversation conversation =
        read_conversation(*messages, runner.reasoning_tags(), runner.prompt_document().images.placeholder);
    request.turns = std::move(conversation.turns);
    for (const std::string& url : conversation.image_urls) request.images.push_back(load_url(url, runner));
  } else {
    request.raw = true;
    request.turns = {{Role::kUser, *prompt}};
  }
  return request;
}

}  // namespace r1v::triton
