#include "engine/tokenizer/tokenizer.h"

#include <fmt/format.h>

#include "engine/tokenizer/byte_bpe.h"
#include "engine/tokenizer/sentence_piece.h"
#include "engine/tokenizer/token_keys.h"
#include "engine/tokenizer/unigram.h"
#include "engine/tokenizer/utf8.h"

namespace riffle::engine {
namespace {

constexpr std::string_view kReplacement = "\uFFFD";  // for bytes that are not UTF-8

// Moves complete characters from the front of `bytes` to the result, in which bytes that are not
// UTF-8 become U+FFFD. What is left in `bytes` is empty or the start of a character.
std::string TakeCharacters(std::string* bytes) {
  std::string text;
  std::string_view rest = *bytes;
  while (!rest.empty()) {
    const Utf8Character first = FirstCharacter(rest);
    if (first.kind == Utf8Character::kIncomplete) break;
    text += first.kind == Utf8Character::kValid ? rest.substr(0, first.length) : kReplacement;
    rest.remove_prefix(first.length);
  }
  bytes->erase(0, bytes->size() - rest.size());
  return text;
}

std::unique_ptr<FragmentEncoder> MakeEncoder(const GgufFile& file,
                                             const std::vector<std::string_view>& texts,
                                             const std::vector<TokenType>& types) {
  const std::string_view model = file.String("tokenizer.ggml.model");
  if (model == "llama") return std::make_unique<SentencePiece>(file, texts, types);
  if (model == "t5") return std::make_unique<Unigram>(file, texts, types);
  if (model == "gpt2") return std::make_unique<ByteBpe>(file, texts, types);
  file.Fail(
      fmt::format("its tokenizer is \"{}\"; \"llama\" (SentencePiece's BPE), \"t5\" "
                  "(SentencePiece's unigram) and \"gpt2\" (byte-level BPE) can be used",
                  Printable(model)));
}

}  // namespace

Tokenizer::Tokenizer(const GgufFile& file) {
  const auto texts = file.Strings("tokenizer.ggml.tokens");
  const std::vector<TokenType> types = ReadTypes(file, texts.size());
  encoder_ = MakeEncoder(file, texts, types);
  token_bytes_.reserve(texts.size());
  for (size_t i = 0; i < texts.size(); ++i) {
    const bool control = types[i] == TokenType::kControl;
    const bool special = control || types[i] == TokenType::kUserDefined;
    if (special) special_.Add(encoder_->EscapeSpaces(texts[i]), static_cast<int32_t>(i), control);
    const bool text = special || types[i] == TokenType::kNormal || types[i] == TokenType::kByte;
    token_bytes_.push_back(text && !control ? encoder_->TokenBytes(texts[i], types[i]) : "");
  }
  special_.Finish();
  ReadSettings(file);
}

Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;

std::vector<TokenType> Tokenizer::ReadTypes(const GgufFile& file, size_t tokens) {
  if (tokens == 0 || tokens > INT32_MAX) {
    file.Fail(fmt::format("its vocabulary has {} tokens", tokens));
  }
  const auto numbers = file.Integers("tokenizer.ggml.token_type");
  if (numbers.size() != tokens) {
    file.Fail(fmt::format("its vocabulary has {} tokens, but {} types", tokens, numbers.size()));
  }
  std::vector<TokenType> types;
  for (size_t i = 0; i < tokens; ++i) {
    if (numbers[i] < 1 || numbers[i] > 6) {
      file.Fail(fmt::format("token {} is of type {}; 1 to 6 are possible", i, numbers[i]));
    }
    types.push_back(static_cast<TokenType>(numbers[i]));
  }
  return types;
}

void Tokenizer::ReadSettings(const GgufFile& file) {
  const bool bos = file.BoolOr("tokenizer.ggml.add_bos_token", encoder_->adds_bos());
  const bool eos = file.BoolOr("tokenizer.ggml.add_eos_token", encoder_->adds_eos());
  if (bos) bos_ = ReadToken(file, "bos_token_id", token_bytes_.size());
  if (eos) eos_ = ReadToken(file, "eos_token_id", token_bytes_.size());
}

std::vector<int32_t> Tokenizer::Encode(std::string_view text) const {
  const TextPart part = {std::string(text), false};
  return Encode(std::span(&part, 1));
}

std::vector<int32_t> Tokenizer::Encode(std::span<const TextPart> parts) const {
  std::string escaped;
  std::vector<TokenMatcher::Range> plain;  // the plain parts, in order
  size_t offset = 0;
  for (const TextPart& part : parts) {
    const size_t invalid = FindInvalidUtf8(part.text);
    if (invalid != std::string_view::npos) {
      throw BadText(fmt::format("is not valid UTF-8: byte 0x{:02x} at offset {}",
                                static_cast<uint8_t>(part.text[invalid]), offset + invalid));
    }
    offset += part.text.size();
    const size_t start = escaped.size();
    escaped += encoder_->EscapeSpaces(part.text);
    if (part.plain) plain.push_back({start, escaped.size()});
  }
  const std::string_view text = escaped;
  std::vector<int32_t> tokens;
  const auto encode = [&](std::string_view fragment) {
    if (!fragment.empty()) encoder_->Encode(fragment, &tokens);
  };
  if (bos_ >= 0) tokens.push_back(bos_);
  size_t start = 0;  // of the fragment at hand
  for (const TokenMatcher::Match& special : special_.Find(text, plain)) {
    encode(text.substr(start, special.start - start));
    tokens.push_back(special.token);
    start = special.start + special.length;
  }
  encode(text.substr(start));
  if (eos_ >= 0) tokens.push_back(eos_);
  return tokens;
}

std::optional<int32_t> Tokenizer::SpecialToken(std::string_view text) const {
  const std::string escaped = encoder_->EscapeSpaces(text);
  const std::vector<TokenMatcher::Match> matches = special_.Find(escaped);
  if (matches.size() != 1 || matches[0].length != escaped.size()) return std::nullopt;
  return matches[0].token;
}

std::string_view Tokenizer::TokenBytes(int32_t token) const {
  if (token < 0 || token >= vocab()) {
    throw std::out_of_range(fmt::format("token {} of a vocabulary of {}", token, vocab()));
  }
  return token_bytes_[static_cast<size_t>(token)];
}

std::string Tokenizer::Decode(const std::vector<int32_t>& tokens) const {
  StreamDecoder decoder(*this);
  std::string text;
  for (const int32_t token : tokens) text += decoder.Push(token);
  text += decoder.Finish();
  if (encoder_->adds_space() && text.starts_with(' ')) text.erase(0, 1);
  return text;
}

std::string StreamDecoder::Push(int32_t token) {
  pending_ += tokenizer_->TokenBytes(token);
  return TakeCharacters(&pending_);
}

std::string StreamDecoder::Finish() {
  const bool incomplete = !pending_.empty();
  pending_.clear();
  return incomplete ? std::string(kReplacement) : std::string();
}

}  // namespace riffle::engine
