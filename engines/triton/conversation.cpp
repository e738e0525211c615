#include "triton/conversation.h"

#include "triton/request_fields.h"

namespace r1v::triton {
namespace {

constexpr char kNoConversation[] = "messages is no conversation";

struct Part {
  bool is_image;
  std::string text;  // of an image: its URL
};

std::string read_image_url(RequestFields& part) {
  RequestFields image(part.require("image_url", "an object with the url"), part.place("image_url"), kNoConversation);
  image.require("url", "a data: URL");
  std::string url = *image.text("url");
  const std::string detail = image.text("detail").value_or("auto");
  if (detail != "auto" && detail != "low" && detail != "high") image.refuse("detail", "auto, low or high", detail);
  image.require_no_others();
  return url;
}

Part read_part(const Json& value, const std::string& where, bool images) {
  RequestFields fields(value, where, kNoConversation);
  const char* expected = images ? "text or image_url" : "text";
  const Json& type = fields.require("type", expected);
  Part part{type == "image_url", ""};
  if (part.is_image && images) {
    part.text = read_image_url(fields);
  } else if (type == "text") {
    fields.require("text", "a text");
    part.text = *fields.text("text");
  } else {
    fields.refuse("type", expected, type);
  }
  fields.require_no_others();
  return part;
}

// A message's content: a text, or a list of parts.
std::vector<Part> read_content(RequestFields& message, const Json& content, bool images) {
  if (content.is_string()) return {{false, content.get<std::string>()}};
  if (!content.is_array()) message.refuse("content", "a text or a list of parts", content);
  std::vector<Part> parts;
  for (const Json& part : content) {
    parts.push_back(read_part(part, message.place("content[" + std::to_string(parts.size()) + "]"), images));
  }
  return parts;
}

void refuse_placeholder(const RequestFields& message, const std::vector<Part>& parts, const std::string& placeholder) {
  for (const Part& part : parts) {
    if (part.is_image || part.text.find(placeholder) == std::string::npos) continue;
    throw Error(
        Code::kInput, "A text with " + placeholder + " cannot be distinguished from the place of an image.",
        {message.where(), "images as parts of type image_url, and no " + placeholder + " in the texts between them", "",
         "take " + placeholder + " out of the text"});
  }
}

// The parts as lines, with a placeholder for each image.
std::string joined(const std::vector<Part>& parts, const std::string& placeholder) {
  std::string text;
  for (size_t i = 0; i < parts.size(); ++i) {
    if (i > 0) text += '\n';
    text += parts[i].is_image ? placeholder : parts[i].text;
  }
  return text;
}

void read_user(RequestFields& message, const std::string& placeholder, Conversation* conversation) {
  const Json& content = message.require("content", "a text or a list of parts");
  const std::vector<Part> parts = read_content(message, content, true);
  Turn turn{Role::kUser, joined(parts, placeholder)};
  for (const Part& part : parts) {
    if (!part.is_image) continue;
    ++turn.images;
    conversation->image_urls.push_back(part.text);
  }
  if (turn.images > 0) refuse_placeholder(message, parts, placeholder);
  conversation->turns.push_back(std::move(turn));
}

Turn read_assistant(RequestFields& message, const ReasoningTags& tags) {
  const Json* content = message.find("content");
  std::string text = content == nullptr ? "" : joined(read_content(message, *content, false), "");
  const std::optional<std::string> content_field = message.text("reasoning_content");
  const std::optional<std::string> field = message.text("reasoning");
  if (const Json* refusal = message.find("refusal")) message.refuse("refusal", "null", *refusal);
  const bool has_content_field = content_field && !content_field->empty();
  const std::optional<std::string>& reasoning = has_content_field ? content_field : field;
  if (reasoning) text = tags.start + *reasoning + tags.end + text;
  return {Role::kAssistant, std::move(text)};
}

void read_message(const Json& value, const std::string& where, const ReasoningTags& tags,
                  const std::string& placeholder, Conversation* conversation) {
  RequestFields message(value, where, kNoConversation);
  const Json& role = message.require("role", "system, user or assistant");
  message.text("name");  // taken and not used
  if (role == "user") {
    read_user(message, placeholder, conversation);
  } else if (role == "assistant") {
    conversation->turns.push_back(read_assistant(message, tags));
  } else if (role == "system" || role == "developer") {
    const Json& content = message.require("content", "a text or a list of parts");
    conversation->turns.push_back({Role::kSystem, joined(read_content(message, content, false), "")});
  } else {
    message.refuse("role", "system, user or assistant", role);
  }
  message.require_no_others();
}

}  // namespace

Conversation read_conversation(const std::string& messages, const ReasoningTags& tags, const std::string& placeholder) {
  const Json document = parse_request_json(messages, kNoConversation);
  if (!document.is_array() || document.empty())
    throw_request_field(kNoConversation, "messages", "a list of at least one message", document);
  Conversation conversation;
  for (size_t i = 0; i < document.size(); ++i)
    read_message(document[i], "messages[" + std::to_string(i) + "]", tags, placeholder, &conversation);
  return conversation;
}

}  // namespace r1v::triton
