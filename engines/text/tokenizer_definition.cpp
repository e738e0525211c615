#include "text/tokenizer_definition.h"

#include <algorithm>
#include <optional>
#include <string_view>
#include <unordered_map>

#include "text/byte_level.h"
#include "text/unsupported.h"

namespace r1v {
namespace {

using Vocabulary = std::unordered_map<std::string_view, uint32_t>;

[[noreturn]] void throw_damaged(const std::string& what, const std::string& where, const std::string& expected,
                                const std::string& found) {
  throw Error(Code::kBundle, what, {where, expected, found, "fetch the bundle again"});
}

// A field that may be missing or null.
const Json& optional(const Json& object, const char* name) {
  static const Json kNull;
  const auto found = object.find(name);
  return found == object.end() ? kNull : *found;
}

// Whether a normalizer or decoder is of one type, or a sequence of such.
bool is_all(const Json& part, const char* type, const char* list) {
  if (!part.is_object()) return false;
  if (optional(part, "type") == type) return true;
  const Json& parts = optional(part, list);
  return optional(part, "type") == "Sequence" && parts.is_array() && !parts.empty() &&
         std::all_of(parts.begin(), parts.end(), [&](const Json& inner) { return optional(inner, "type") == type; });
}

std::string shorten(const Json& value) { return value.dump(-1, ' ', true).substr(0, 200); }

void check_supported(const Json& definition, const Json& model, const std::string& file) {
  const Json& type = optional(model, "type");
  if (type != "BPE" && !type.is_null()) throw_unsupported(file + ": model.type", "BPE", shorten(type));
  const Json& dropout = optional(model, "dropout");
  if (!dropout.is_null() && dropout != 0) throw_unsupported(file + ": model.dropout", "none", shorten(dropout));
  for (const char* affix : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    const Json& value = optional(model, affix);
    if (!value.is_null() && value != "") throw_unsupported(file + ": model." + affix, "none", shorten(value));
  }
  const Json& decoder = optional(definition, "decoder");
  if (!is_all(decoder, "ByteLevel", "decoders")) throw_unsupported(file + ": decoder", "ByteLevel", shorten(decoder));
}

bool read_normalizer(const Json& definition, const std::string& file) {
  const Json& normalizer = optional(definition, "normalizer");
  const bool is_nfc = is_all(normalizer, "NFC", "normalizers");
  if (!is_nfc && !normalizer.is_null()) throw_unsupported(file + ": normalizer", "NFC or none", shorten(normalizer));
  return is_nfc;
}

// Every added token of the definition must be one of the pipeline's: else text could make it.
void check_added_tokens(const Json& definition, const std::unordered_map<std::string_view, int64_t>& added,
                        const std::string& file) {
  const Json& tokens = optional(definition, "added_tokens");
  if (tokens.is_null()) return;
  for (const Json& token : Fields(definition, file).array("added_tokens")) {
    const Fields fields(token, file + ": added_tokens");
    const std::string name = fields.text("content");
    const auto known = added.find(name);
    if (known == added.end() || known->second != fields.integer("id", 0, kMaxTokenId)) {
      throw_damaged("tokenizer.json and pipeline.json disagree about an added token.", file + ": added_tokens",
                    "the added tokens of pipeline.json", name);
    }
  }
}

bool is_id(const Json& value) {
  if (!value.is_number_integer()) return false;
  const auto id = value.get<int64_t>();  // Negative for what is beyond it.
  return id >= 0 && id <= kMaxTokenId;
}

Vocabulary read_vocabulary(const Fields& model, const std::unordered_map<std::string_view, int64_t>& added) {
  const Json& vocab = model.at("vocab");
  if (!vocab.is_object()) throw_field(model.where() + ".vocab", "an object", vocab);
  Vocabulary tokens;
  tokens.reserve(vocab.size());
  for (auto item = vocab.begin(); item != vocab.end(); ++item) {
    const std::string& token = item.key();
    if (added.count(token) != 0) continue;
    if (!is_id(item.value())) throw_field(model.where() + ".vocab: " + token, "an id below 16777216", item.value());
    tokens.emplace(token, item.value().get<uint32_t>());
  }
  return tokens;
}

using Pair = std::pair<std::string_view, std::string_view>;

// A merge's two tokens, written as a pair or with a space between them; nothing if it is neither.
std::optional<Pair> read_pair(const Json& merge) {
  if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
    return Pair(merge[0].get_ref<const std::string&>(), merge[1].get_ref<const std::string&>());
  }
  const std::string_view text = merge.is_string() ? merge.get_ref<const std::string&>() : std::string_view();
  const size_t space = text.find(' ');
  if (space == std::string_view::npos || text.find(' ', space + 1) != std::string_view::npos) return std::nullopt;
  return Pair(text.substr(0, space), text.substr(space + 1));
}

std::vector<Merge> read_merges(const Fields& model, const Vocabulary& vocabulary) {
  const Json& list = model.array("merges");
  std::vector<Merge> merges;
  merges.reserve(list.size());
  std::string joined;
  for (const Json& item : list) {
    if (item.is_string() && item.get_ref<const std::string&>().rfind("#version", 0) == 0) continue;
    const auto where = [&] { return model.where() + ".merges." + std::to_string(merges.size()); };
    const std::optional<Pair> pair = read_pair(item);
    if (!pair) throw_field(where(), "two tokens", item);
    joined.assign(pair->first).append(pair->second);
    const auto tokens = {vocabulary.find(pair->first), vocabulary.find(pair->second), vocabulary.find(joined)};
    if (std::any_of(tokens.begin(), tokens.end(), [&](const auto& token) { return token == vocabulary.end(); })) {
      throw_damaged("A merge of the tokenizer needs a token that is not in the vocabulary.", where(),
                    "tokens of the vocabulary, and none that is an added token", shorten(item));
    }
    const auto* found = tokens.begin();
    merges.push_back({found[0]->second, found[1]->second, static_cast<uint32_t>(merges.size()), found[2]->second});
  }
  return merges;
}

// Every token's bytes; fills in the model's tokens of single bytes, and its words if the merges do not matter for them.
void read_tokens(const Vocabulary& vocabulary, bool ignore_merges, const std::string& file,
                 TokenizerDefinition* definition) {
  std::array<bool, 256> is_known{};
  std::string bytes;
  for (const auto& [token, id] : vocabulary) {
    if (!to_bytes(token, &bytes)) {
      definition->tokens.emplace_back(id, token);
      continue;
    }
    if (bytes.size() == 1) {
      is_known[static_cast<unsigned char>(bytes[0])] = true;
      definition->bpe.byte_tokens[static_cast<unsigned char>(bytes[0])] = id;
    }
    if (ignore_merges) definition->bpe.words.emplace(bytes, id);
    definition->tokens.emplace_back(id, bytes);
  }
  if (!std::all_of(is_known.begin(), is_known.end(), [](bool known) { return known; })) {
    throw_damaged("The tokenizer is not a byte-level BPE.", file + ": model.vocab",
                  "a BPE vocabulary with one token for each of the 256 bytes", "some bytes have none");
  }
}

// Sorts the tokens by their ids. Were an id given twice, text could make a special token after all.
void check_ids_are_distinct(const std::string& file, TokenizerDefinition* definition) {
  auto& tokens = definition->tokens;
  std::sort(tokens.begin(), tokens.end());
  const auto same = std::adjacent_find(tokens.begin(), tokens.end(),
                                       [](const auto& one, const auto& next) { return one.first == next.first; });
  if (same != tokens.end()) {
    throw_damaged("Two tokens share one id.", file, "id " + std::to_string(same->first) + " for one token",
                  same->second + " and " + std::next(same)->second);
  }
}

}  // namespace

TokenizerDefinition read_definition(const Json& definition, const TokenizerDocument& document) {
  const std::string& file = document.definition;
  const Fields fields(definition, file);
  const Fields model(fields.at("model"), file + ": model");
  std::unordered_map<std::string_view, int64_t> added;
  for (const AddedToken& token : document.added_tokens) {
    if (!added.emplace(token.token, token.id).second) {
      throw_damaged("An added token is listed twice.", "pipeline.json: tokenizer.added_tokens", "", token.token);
    }
  }
  check_supported(definition, fields.at("model"), file);
  check_added_tokens(definition, added, file);
  TokenizerDefinition read;
  read.normalizes = read_normalizer(definition, file);
  read.pre_tokenizer = PreTokenizer::from_json(fields.at("pre_tokenizer"), file + ": pre_tokenizer");
  const Vocabulary vocabulary = read_vocabulary(model, added);
  read.tokens.reserve(vocabulary.size() + added.size());
  read_tokens(vocabulary, model.has("ignore_merges") && model.flag("ignore_merges"), file, &read);
  read.bpe.merges = MergeTable(read_merges(model, vocabulary));
  std::string bytes;
  for (const AddedToken& token : document.added_tokens) {
    read.tokens.emplace_back(token.id, to_bytes(token.token, &bytes) ? bytes : token.token);
  }
  check_ids_are_distinct(file, &read);
  return read;
}

}  // namespace r1v
