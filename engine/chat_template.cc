#include "engine/chat_template.h"

#include <fmt/format.h>

#include <algorithm>

#include "engine/tokenizer/unicode.h"

namespace riffle::engine {
namespace {

using Family = ChatTemplate::Family;
using Role = ChatMessage::Role;

constexpr std::string_view kKey = "tokenizer.chat_template";

struct Known {
  Family family;
  const char* name;
  std::string_view mark;      // what only templates of the family contain
  std::string_view not_with;  // a mark of a different, related family; empty: none
  std::string_view end_of_turn;
};
constexpr Known kFamilies[] = {
    {Family::kChatMl, "ChatML", "<|im_start|>", "<|im_sep|>", "<|im_end|>"},
    {Family::kGemma, "Gemma", "<start_of_turn>", "", "<end_of_turn>"},
    {Family::kLlama3, "Llama 3", "<|start_header_id|>", "", "<|eot_id|>"},
};

bool Contains(std::string_view text, std::string_view what) {
  return text.find(what) != std::string_view::npos;
}

const Known* Recognise(std::string_view text) {
  for (const Known& known : kFamilies) {
    if (Contains(text, known.mark) && (known.not_with.empty() || !Contains(text, known.not_with))) {
      return &known;
    }
  }
  return nullptr;
}

// Removes a newline at the front, either the character or an escape in a Jinja literal.
bool SkipNewline(std::string_view& text) {
  for (const std::string_view newline : {"\n", "\\n"}) {
    if (text.starts_with(newline)) {
      text.remove_prefix(newline.size());
      return true;
    }
  }
  return false;
}

// The system text that a ChatML template writes for a conversation without one: the first literal
// between the role and the end of the turn.
std::string DefaultSystem(std::string_view text) {
  constexpr std::string_view kStart = "<|im_start|>system";
  for (size_t at = 0; (at = text.find(kStart, at)) != std::string_view::npos;) {
    at += kStart.size();
    std::string_view rest = text.substr(at);
    if (!SkipNewline(rest)) {
      continue;
    }
    const std::string_view literal = rest.substr(0, rest.find("<|im_end|>"));
    if (!literal.empty() && literal.find_first_of("'\"{}") == std::string_view::npos) {
      return std::string(literal);
    }
  }
  return "";
}

// `text` without white space at its ends, like Jinja's filter trim.
std::string_view Trim(std::string_view text) {
  size_t first = std::string_view::npos;
  size_t end = 0;
  for (size_t at = 0; at < text.size();) {
    const Character character = DecodeFirst(text.substr(at));
    if (ClassOf(character.code) != CharacterClass::kSpace) {
      first = std::min(first, at);
      end = at + character.length;
    }
    at += character.length;
  }
  return first == std::string_view::npos ? std::string_view() : text.substr(first, end - first);
}

std::string_view WithoutThoughts(std::string_view text) {
  constexpr std::string_view kEnd = "</think>";
  const size_t end = text.rfind(kEnd);
  if (end == std::string_view::npos) {
    return text;
  }
  text.remove_prefix(end + kEnd.size());
  text.remove_prefix(std::min(text.find_first_not_of('\n'), text.size()));
  return text;
}

const char* RoleName(Role role) {
  constexpr const char* kNames[] = {"system", "user", "assistant"};
  return kNames[static_cast<int>(role)];
}

void Literal(std::vector<TextPart>& parts, std::string text) {
  parts.push_back({std::move(text), false});
}
void Plain(std::vector<TextPart>& parts, std::string_view text) {
  parts.push_back({std::string(text), true});
}

}  // namespace

ChatTemplate::ChatTemplate(const GgufFile& file, const Tokenizer& tokenizer)
    : file_path_(file.path()) {
  if (!file.Has(kKey)) {
    file.Fail(fmt::format("has no {}, so it is not known how to talk to it; it can continue texts",
                          kKey));
  }
  const std::string_view text = file.String(kKey);
  const Known* known = Recognise(text);
  if (known == nullptr) {
    file.Fail(fmt::format("its {}, \"{}\", is of no known family; known are {}", kKey,
                          Printable(text), Names()));
  }
  family_ = known->family;
  for (const std::string_view token : {known->mark, known->end_of_turn}) {
    const std::optional<int32_t> id = tokenizer.SpecialToken(token);
    if (!id) {
      file.Fail(fmt::format("its {} is {}'s, but its vocabulary has no special token {}", kKey,
                            known->name, token));
    }
    end_of_turn_ = *id;
  }
  if (family_ == Family::kChatMl) {
    default_system_ = DefaultSystem(text);
    strips_thoughts_ = Contains(text, "</think>");
  }
  takes_system_ = family_ != Family::kGemma || !Contains(text, "System role not supported");
  has_knowledge_date_ = Contains(text, "Cutting Knowledge Date");
  if (Contains(text, "bos_token") && !tokenizer.adds_bos()) {
    const auto bos = static_cast<size_t>(file.Integer("tokenizer.ggml.bos_token_id"));
    const auto texts = file.Strings("tokenizer.ggml.tokens");
    bos_ = bos < texts.size() ? texts[bos] : "";
  }
}

const char* ChatTemplate::NameOf(Family family) {
  return kFamilies[static_cast<size_t>(family)].name;
}
const char* ChatTemplate::name() const { return NameOf(family_); }
const char* ChatTemplate::Names() { return "ChatML, Gemma and Llama 3"; }

std::optional<Family> ChatTemplate::FamilyOf(const GgufFile& file) {
  const Known* known = file.Has(kKey) ? Recognise(file.String(kKey)) : nullptr;
  return known == nullptr ? std::nullopt : std::optional(known->family);
}

void ChatTemplate::CheckSystem() const {
  if (!takes_system_) {
    throw BadModel(file_path_ + ": its " + std::string(kKey) + " takes no system message");
  }
}

std::vector<TextPart> ChatTemplate::Render(std::span<const ChatMessage> messages) const {
  std::vector<TextPart> parts;
  if (!bos_.empty()) {
    Literal(parts, bos_);
  }
  switch (family_) {
    case Family::kChatMl:
      RenderChatMl(messages, parts);
      break;
    case Family::kGemma:
      RenderGemma(messages, parts);
      break;
    case Family::kLlama3:
      RenderLlama3(messages, parts);
      break;
  }
  return parts;
}

void ChatTemplate::RenderChatMl(std::span<const ChatMessage> messages,
                                std::vector<TextPart>& parts) const {
  if (messages.front().role != Role::kSystem && !default_system_.empty()) {
    Literal(parts, "<|im_start|>system\n" + default_system_ + "<|im_end|>\n");
  }
  for (const ChatMessage& message : messages) {
    const bool answer = message.role == Role::kAssistant;
    Literal(parts, std::string("<|im_start|>") + RoleName(message.role) + "\n");
    Plain(parts, answer && strips_thoughts_ ? WithoutThoughts(message.text) : message.text);
    Literal(parts, "<|im_end|>\n");
  }
  Literal(parts, "<|im_start|>assistant\n");
}

// A system message is written at the start of the first question.
void ChatTemplate::RenderGemma(std::span<const ChatMessage> messages,
                               std::vector<TextPart>& parts) const {
  std::string before;
  for (const ChatMessage& message : messages) {
    if (message.role == Role::kSystem) {
      before = message.text + "\n\n";
      continue;
    }
    const bool answer = message.role == Role::kAssistant;
    Literal(parts, std::string("<start_of_turn>") + (answer ? "model" : "user") + "\n");
    Plain(parts, before + std::string(Trim(message.text)));
    Literal(parts, "<end_of_turn>\n");
    before.clear();
  }
  Literal(parts, "<start_of_turn>model\n");
}

// Llama 3.1 and later always have a system message, which begins with two dates. The second date is
// the one that the template itself uses if its caller gives none.
void ChatTemplate::RenderLlama3(std::span<const ChatMessage> messages,
                                std::vector<TextPart>& parts) const {
  const auto start = [&](const char* role) {
    Literal(parts, std::string("<|start_header_id|>") + role + "<|end_header_id|>\n\n");
  };
  if (has_knowledge_date_) {
    start(RoleName(Role::kSystem));
    Literal(parts, "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n");
    if (messages.front().role == Role::kSystem) {
      Plain(parts, Trim(messages.front().text));
      messages = messages.subspan(1);
    }
    Literal(parts, "<|eot_id|>");
  }
  for (const ChatMessage& message : messages) {
    start(RoleName(message.role));
    Plain(parts, Trim(message.text));
    Literal(parts, "<|eot_id|>");
  }
  start(RoleName(Role::kAssistant));
}

}  // namespace riffle::engine
