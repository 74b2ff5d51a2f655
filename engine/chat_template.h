// How a conversation is written for a model: its file's tokenizer.chat_template, recognised as one
// of the families that are known here. The template is a program in Jinja's language; what is taken
// of it are the family, a system text of its own, and what distinguishes members of a family.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/gguf/gguf.h"
#include "engine/tokenizer/tokenizer.h"

namespace riffle::engine {

struct ChatMessage {
  enum class Role : uint8_t { kSystem, kUser, kAssistant };
  Role role;
  std::string text;
};

class ChatTemplate {
 public:
  enum class Family : uint8_t {
    kChatMl,  // <|im_start|>user\n...<|im_end|>\n: Qwen, SmolLM2, ...
    kGemma,   // <start_of_turn>user\n...<end_of_turn>\n, the model's role is "model"
    kLlama3,  // <|start_header_id|>user<|end_header_id|>\n\n...<|eot_id|>
  };

  // Throws BadModel if the file has no template, or one of no known family, or lacks a token of its
  // family.
  ChatTemplate(const GgufFile& file, const Tokenizer& tokenizer);

  Family family() const { return family_; }
  const char* name() const;
  static const char* Names();  // of the families

  // Throws BadModel if the template takes no system message.
  void CheckSystem() const;

  // The conversation and the beginning of an answer, for Tokenizer::Encode, which adds BOS. Text of
  // messages is plain: control tokens that it spells out stay text. Pre: a system message only as
  // the first one, then user and assistant in turn, user first and last.
  std::vector<TextPart> Render(std::span<const ChatMessage> messages) const;

  // The token that ends an answer, which not every file has among its stop tokens.
  int32_t end_of_turn() const { return end_of_turn_; }

  // The family of a file's template; nothing if it has none, or of no known family.
  static std::optional<Family> FamilyOf(const GgufFile& file);
  static const char* NameOf(Family family);

 private:
  void RenderChatMl(std::span<const ChatMessage> messages, std::vector<TextPart>& parts) const;
  void RenderGemma(std::span<const ChatMessage> messages, std::vector<TextPart>& parts) const;
  void RenderLlama3(std::span<const ChatMessage> messages, std::vector<TextPart>& parts) const;

  Family family_ = Family::kChatMl;
  std::string file_path_;
  std::string bos_;                  // what Encode does not add although the template does
  std::string default_system_;       // ChatML: of a conversation without a system message
  bool takes_system_ = true;         // Gemma 2 takes none
  bool strips_thoughts_ = false;     // ChatML of Qwen 3: of answers before the last question
  bool has_knowledge_date_ = false;  // Llama 3.1 and later
  int32_t end_of_turn_ = -1;
};

}  // namespace riffle::engine
