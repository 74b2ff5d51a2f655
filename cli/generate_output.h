// The output of `riffle generate`: texts as they come or JSON lines, in the order of the requests,
// and a progress line on a terminal.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/engine.h"
#include "engine/stop_texts.h"
#include "engine/tokenizer/tokenizer.h"

namespace riffle::cli {

// The reason that is printed for a request whose finish is kError.
inline constexpr const char* kErrorReason =
    "the model gave logits that are not numbers, so the answer ends";

// The continuation of a prompt.
struct Generation {
  Generation(std::string prompt_text, int64_t prompt_size, const engine::Tokenizer& tokenizer,
             const std::vector<std::string>& stop_texts)
      : prompt(std::move(prompt_text)),
        prompt_tokens(prompt_size),
        decoder(tokenizer),
        stop(stop_texts) {}

  // Takes the next token. If its text completes a stop text, `finish` is set, but the engine does
  // not know: the caller must cancel the request.
  void Add(const engine::Generated& generated);
  // No more tokens follow: adds what StopTexts held back to the text. Safe to call again.
  void End();

  std::string prompt;
  int64_t prompt_tokens;
  engine::StreamDecoder decoder;
  engine::StopTexts stop;
  std::vector<int32_t> tokens;  // generated
  std::vector<float> log_probabilities;
  std::string text;  // the text of these tokens, up to a stop text
  std::optional<engine::Finish> finish;
};

// Replaces control characters other than line feeds and tabs by U+FFFD if stdout is a terminal: a
// model may write anything, and a terminal would obey them. Pre: whole characters of valid UTF-8.
std::string SafeForTerminal(std::string_view text);

// One line of --json.
void PrintJson(const Generation& generation, bool log_probabilities);

// A line on stderr that overwrites itself; nothing unless stderr is a terminal.
class ProgressLine {
 public:
  ProgressLine();
  void Show(const std::string& text, bool at_once = false);
  void Clear();

 private:
  bool terminal_;
  bool shown_ = false;
  std::chrono::steady_clock::time_point last_;
};

class GenerateOutput {
 public:
  struct Format {
    bool json = false;
    bool log_probabilities = false;
    bool chat = false;  // answers begin on a line of their own
  };
  GenerateOutput(const std::vector<Generation>& generations, const Format& format);
  // Prints what has become printable.
  void Update(const engine::Progress& progress, const engine::EngineStats& stats);
  void Finish(const engine::EngineStats& stats, double load_seconds);

  ProgressLine& line() { return line_; }

 private:
  void StreamText();
  void PrintFinished();

  const std::vector<Generation>& generations_;
  Format format_;
  bool terminal_;         // stdout is one
  size_t head_ = 0;       // the first generation that is not completely printed
  bool started_ = false;  // whether its prompt has been printed
  size_t printed_ = 0;    // how many bytes of its text have been printed
  ProgressLine line_;
};

}  // namespace riffle::cli
