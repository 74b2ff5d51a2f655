// How a conversation is written for a model: its file's tokenizer.chat_template, recognised as one
// of the families known here. The template is a program in Jinja's language; only its family, its
// default system text, and what distinguishes members of a family are read from it.
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

  // Throws BadModel if the file has no template, a template of an unknown family, or no token that
  // its family needs.
  ChatTemplate(const GgufFile& file, const Tokenizer& tokenizer);

  Family family() const { return family_; }
  const char* name() const;
  static const char* Names();  // the known families, for texts

  // Throws BadModel if the template does not support a system message.
  void CheckSystem() const;

  // The conversation and the beginning of an answer, for Tokenizer::Encode, which adds BOS. Control
  // tokens spelt out in messages stay plain text. Pre: only the first message may be a system
  // message; then user and assistant alternate, user first and last.
  std::vector<TextPart> Render(std::span<const ChatMessage> messages) const;

  // The token that ends an answer, which not every file has among its stop tokens.
  int32_t end_of_turn() const { return end_of_turn_; }

  // The family of a file's template; nullopt without a template or if its family is unknown.
  static std::optional<Family> FamilyOf(const GgufFile& file);
  static const char* NameOf(Family family);

 private:
  void RenderChatMl(std::span<const ChatMessage> messages, std::vector<TextPart>& parts) const;
  void RenderGemma(std::span<const ChatMessage> messages, std::vector<TextPart>& parts) const;
  void RenderLlama3(std::span<const ChatMessage> messages, std::vector<TextPart>& parts) const;

  Family family_ = Family::kChatMl;
  std::string file_path_;
  std::string bos_;                  // the template's BOS where Encode does not add one
  std::string default_system_;       // ChatML: for conversations without a system message
  bool takes_system_ = true;         // false for Gemma 2
  bool strips_thoughts_ = false;     // Qwen 3's ChatML: drops thoughts from earlier answers
  bool has_knowledge_date_ = false;  // Llama 3.1 and later
  int32_t end_of_turn_ = -1;
};

}  // namespace riffle::engine
