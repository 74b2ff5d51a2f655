// The output of `riffle generate`: texts as they come or JSON lines, in the order of the requests,
// and a progress line on a terminal.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/tokenizer/tokenizer.h"

namespace riffle::cli {

struct Generation {
  std::string prompt;
  int64_t prompt_tokens;
  engine::StreamDecoder decoder;
  std::vector<int32_t> tokens{};  // generated
  std::string text{};             // the text of these tokens
  std::optional<engine::Finish> finish{};

  void Add(const engine::Generated& generated);
};

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
  GenerateOutput(const std::vector<Generation>& generations, bool json);
  // Prints what can be printed by now.
  void Update(const engine::Progress& progress, const engine::EngineStats& stats);
  void Finish(const engine::EngineStats& stats, double load_seconds);

  ProgressLine& line() { return line_; }

 private:
  void StreamText();
  void PrintFinished();
  std::string ForTerminal(std::string_view text) const;

  const std::vector<Generation>& generations_;
  bool json_;
  bool terminal_;         // stdout is one
  size_t head_ = 0;       // the first generation that is not completely printed
  bool started_ = false;  // whether its prompt has been printed
  size_t printed_ = 0;    // how many bytes of its text have been printed
  ProgressLine line_;
};

}  // namespace riffle::cli
