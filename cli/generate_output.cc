#include "cli/generate_output.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "cli/streams.h"
#include "riffle/runtime.h"

namespace riffle::cli {
namespace {

constexpr const char* kClearLine = "\r\x1b[K";
constexpr const char* kBold = "\x1b[1m";
constexpr const char* kPlain = "\x1b[0m";

double Share(double part, double whole) { return whole > 0 ? part / whole : 0; }

const char* NameOf(engine::Finish finish) {
  switch (finish) {
    case engine::Finish::kStop:
      return "stop";
    case engine::Finish::kLength:
      return "length";
    case engine::Finish::kError:
      return "error";
  }
  return "?";
}

void PrintStatsText(const engine::EngineStats& s, size_t requests, int64_t prompt_tokens,
                    int64_t new_tokens) {
  PrintToStderr(fmt::format(
      "{} request{}, {} prompt tokens, {} new tokens in {:.2f} s on {} ({} threads)\n"
      "prefill {:.0f} tokens/s, decode {:.0f} tokens/s; {} of {} pages used\n"
      "of the time: attention {:.1f} %, LM head {:.1f} %, top-k and sampling {:.1f} %\n",
      requests, requests == 1 ? "" : "s", prompt_tokens, new_tokens, s.total_seconds, Target(),
      NumThreads(), s.prefill_tokens_per_second(), s.decode_tokens_per_second(), s.pages_peak,
      s.pages_total, 100 * Share(s.attention_seconds, s.total_seconds),
      100 * Share(s.lm_head_seconds, s.total_seconds),
      100 * Share(s.sampling_seconds, s.total_seconds)));
}

void PrintStatsJson(const engine::EngineStats& s, size_t requests, int64_t prompt_tokens,
                    int64_t new_tokens, double load_seconds) {
  const nlohmann::ordered_json stats = {
      {"requests", requests},
      {"prompt_tokens", prompt_tokens},
      {"new_tokens", new_tokens},
      {"prefill_tokens", s.prefill_tokens},
      {"decode_tokens", s.decode_tokens},
      {"shared_tokens", s.shared_tokens},
      {"prefill_tokens_per_second", s.prefill_tokens_per_second()},
      {"decode_tokens_per_second", s.decode_tokens_per_second()},
      {"pages_used", s.pages_peak},
      {"pages_total", s.pages_total},
      {"attention_share", Share(s.attention_seconds, s.total_seconds)},
      {"lm_head_share", Share(s.lm_head_seconds, s.total_seconds)},
      {"top_k_share", Share(s.sampling_seconds, s.total_seconds)},
      {"steps", s.steps},
      {"preemptions", s.preemptions},
      {"seconds", s.total_seconds},
      {"load_seconds", load_seconds},
      {"threads", NumThreads()},
      {"target", Target()},
  };
  fmt::print("{}\n", nlohmann::ordered_json{{"stats", stats}}.dump());
}

}  // namespace

void Generation::Add(const engine::Generated& generated) {
  finish = generated.finish;
  if (finish != engine::Finish::kError) {
    tokens.push_back(generated.token);
    log_probabilities.push_back(generated.log_probability);
    text += stop.Push(decoder.Push(generated.token));
  }
  if (finish.has_value()) End();
  if (stop.stopped()) finish = engine::Finish::kStop;
}

void Generation::End() {
  text += stop.Push(decoder.Finish());
  text += stop.Finish();
}

std::string SafeForTerminal(std::string_view text) {
  static const bool terminal = ::isatty(STDOUT_FILENO) == 1;
  if (!terminal) return std::string(text);
  std::string safe;
  while (!text.empty()) {
    const std::string_view character = text.substr(0, engine::FirstCharacter(text).length);
    safe += IsControl(character) && character != "\n" && character != "\t" ? "\uFFFD" : character;
    text.remove_prefix(character.size());
  }
  return safe;
}

void PrintJson(const Generation& generation, bool log_probabilities) {
  nlohmann::ordered_json line = {{"prompt", generation.prompt},
                                 {"prompt_tokens", generation.prompt_tokens},
                                 {"tokens", generation.tokens}};
  if (log_probabilities) line["log_probabilities"] = generation.log_probabilities;
  line["text"] = generation.text;
  line["finish_reason"] = generation.finish ? NameOf(*generation.finish) : "cancelled";
  if (generation.finish == engine::Finish::kError) line["error"] = kErrorReason;
  fmt::print("{}\n", line.dump());
}

ProgressLine::ProgressLine() : terminal_(::isatty(STDERR_FILENO) == 1) {}

void ProgressLine::Show(const std::string& text, bool at_once) {
  const auto now = std::chrono::steady_clock::now();
  if (!terminal_ || (!at_once && now - last_ < std::chrono::milliseconds(100))) return;
  last_ = now;
  shown_ = true;
  PrintToStderr(kClearLine + text);
}

void ProgressLine::Clear() {
  if (!shown_) return;
  shown_ = false;
  PrintToStderr(kClearLine);
}

GenerateOutput::GenerateOutput(const std::vector<Generation>& generations, const Format& format)
    : generations_(generations), format_(format), terminal_(::isatty(STDOUT_FILENO) == 1) {}

void GenerateOutput::Update(const engine::Progress& p, const engine::EngineStats& stats) {
  if (format_.json) {
    PrintFinished();
  } else {
    StreamText();
  }
  // Streamed text shows progress itself, and a progress line would be printed into the text.
  if (terminal_ && started_) return;
  if (p.prompt_tokens_prefilled < p.prompt_tokens) {
    line_.Show(fmt::format("prefill: {} of {} prompt tokens; {} waiting, {} running, {} done",
                           p.prompt_tokens_prefilled, p.prompt_tokens, p.waiting, p.running,
                           p.done));
  } else {
    line_.Show(fmt::format("decode: {} tokens, {:.0f}/s; {} waiting, {} running, {} done",
                           p.new_tokens, stats.decode_tokens_per_second(), p.waiting, p.running,
                           p.done));
  }
}

void GenerateOutput::Finish(const engine::EngineStats& stats, double load_seconds) {
  line_.Clear();
  int64_t prompt_tokens = 0, new_tokens = 0;
  for (const Generation& generation : generations_) {
    prompt_tokens += generation.prompt_tokens;
    new_tokens += static_cast<int64_t>(generation.tokens.size());
  }
  if (format_.json) {
    PrintStatsJson(stats, generations_.size(), prompt_tokens, new_tokens, load_seconds);
  } else {
    FlushOutput();
    PrintStatsText(stats, generations_.size(), prompt_tokens, new_tokens);
  }
}

// Prints the first unfinished request's tokens as they come, and those of later requests once it is
// done.
void GenerateOutput::StreamText() {
  for (; head_ < generations_.size(); ++head_, started_ = false, printed_ = 0) {
    const Generation& head = generations_[head_];
    if (head.tokens.empty() && !head.finish.has_value()) break;
    line_.Clear();
    if (!started_) {
      const size_t count = generations_.size();
      if (count > 1) fmt::print("{}--- {} of {}\n", head_ > 0 ? "\n" : "", head_ + 1, count);
      fmt::print("{}{}{}{}", terminal_ ? kBold : "", SafeForTerminal(head.prompt),
                 terminal_ ? kPlain : "", format_.chat ? "\n" : "");
      started_ = true;
    }
    fmt::print("{}", SafeForTerminal(std::string_view(head.text).substr(printed_)));
    printed_ = head.text.size();
    if (!head.finish.has_value()) break;
    fmt::print("\n");
  }
  FlushOutput();
}

void GenerateOutput::PrintFinished() {
  for (; head_ < generations_.size() && generations_[head_].finish.has_value(); ++head_) {
    line_.Clear();
    PrintJson(generations_[head_], format_.log_probabilities);
    FlushOutput();
  }
}

}  // namespace riffle::cli
