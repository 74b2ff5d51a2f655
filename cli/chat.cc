#include "cli/chat.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <optional>

#include "cli/failure.h"
#include "cli/generate_output.h"
#include "cli/streams.h"
#include "engine/model.h"
#include "riffle/runtime.h"

namespace riffle::cli {
namespace {

using engine::ChatMessage;

// The context of a conversation without --context.
constexpr int64_t kMaxContext = 32768;
// Tokens that are kept free for an answer, but at most a quarter of the context.
constexpr int64_t kRoomForAnswer = 256;

int interrupt_pipe_end = -1;  // where the handler writes

void OnInterrupt(int) {
  const int saved = errno;
  if (::write(interrupt_pipe_end, "", 1) < 0) {
    // The pipe is full, and each byte in it says the same.
  }
  errno = saved;
}

// While it lives, Ctrl-C only puts a byte into a pipe. So none is lost, whichever thread
// gets the signal and whatever the program does next: waiting for input also waits for the
// pipe.
class Interrupts {
 public:
  explicit Interrupts(bool wanted) : wanted_(wanted) {
    if (!wanted_) return;
    if (::pipe2(pipe_, O_NONBLOCK | O_CLOEXEC) != 0) {
      FailRun("a pipe cannot be made: {}", std::strerror(errno));
    }
    interrupt_pipe_end = pipe_[1];
    struct sigaction action = {};
    action.sa_handler = OnInterrupt;
    action.sa_flags = SA_RESTART;
    ::sigemptyset(&action.sa_mask);
    ::sigaction(SIGINT, &action, &before_);
  }
  ~Interrupts() {
    if (!wanted_) return;
    ::sigaction(SIGINT, &before_, nullptr);
    ::close(pipe_[0]);
    ::close(pipe_[1]);
  }
  Interrupts(const Interrupts&) = delete;
  Interrupts& operator=(const Interrupts&) = delete;

  // Readable after a Ctrl-C that ConsumeInterrupt() has not reported; -1, which poll() ignores, if
  // not in use.
  int fd() const { return pipe_[0]; }
  // Whether there was a Ctrl-C since the last call.
  bool ConsumeInterrupt() const {
    char bytes[64];
    bool any = false;
    while (wanted_ && ::read(pipe_[0], bytes, sizeof(bytes)) > 0) any = true;
    return any;
  }

 private:
  bool wanted_;
  int pipe_[2] = {-1, -1};
  struct sigaction before_ = {};
};

// Reads lines of standard input; std::cin cannot be interrupted.
class LineReader {
 public:
  enum class Result : uint8_t { kLine, kInterrupted, kEnd };

  // kInterrupted: the part of the line that was typed is dropped.
  Result Read(const Interrupts& interrupts, std::string* line) {
    for (;;) {
      if (const size_t end = pending_.find('\n'); end != std::string::npos) {
        *line = pending_.substr(0, end);
        pending_.erase(0, end + 1);
        return Result::kLine;
      }
      struct ::pollfd inputs[] = {{STDIN_FILENO, POLLIN, 0}, {interrupts.fd(), POLLIN, 0}};
      if (::poll(inputs, 2, -1) < 0) {
        if (errno == EINTR) continue;
        FailRun("standard input cannot be waited for: {}", std::strerror(errno));
      }
      if (interrupts.ConsumeInterrupt()) {
        pending_.clear();
        return Result::kInterrupted;
      }
      if (inputs[0].revents == 0) continue;
      char bytes[4096];
      const ssize_t count = ::read(STDIN_FILENO, bytes, sizeof(bytes));
      if (count > 0) {
        pending_.append(bytes, static_cast<size_t>(count));
        continue;
      }
      if (count < 0) FailRun("standard input cannot be read: {}", std::strerror(errno));
      *line = std::exchange(pending_, "");
      return line->empty() ? Result::kEnd : Result::kLine;
    }
  }

 private:
  std::string pending_;
};

engine::EngineOptions OptionsFor(const GenerateArguments& arguments, const GenerateModel& model) {
  engine::EngineOptions options = OptionsOf(arguments);
  options.context = arguments.context.value_or(std::min(model.context, kMaxContext));
  options.pages = options.context / options.page_size + 2;
  options.max_running = 1;
  return options;
}

class Conversation {
 public:
  Conversation(const GenerateArguments& arguments, const GenerateModel& model)
      : arguments_(arguments),
        model_(model),
        interactive_(::isatty(STDIN_FILENO) == 1),
        weights_(model.file),
        engine_(weights_, OptionsFor(arguments, model)),
        interrupts_(interactive_) {
    if (!arguments.system.empty()) {
      messages_.push_back({ChatMessage::Role::kSystem, arguments.system});
    }
  }

  void Run();

 private:
  std::optional<std::string> NextQuestion();
  std::optional<std::vector<int32_t>> TokensInContext();
  void Answer(const std::string& question);
  Generation Generate(std::vector<int32_t> tokens);
  void Note(const std::string& text) const {
    if (interactive_) PrintToStderr(text + "\n");
  }

  const GenerateArguments& arguments_;
  const GenerateModel& model_;
  bool interactive_;
  engine::Model weights_;
  engine::Engine engine_;
  Interrupts interrupts_;  // last: while the model loads, Ctrl-C ends the program
  std::vector<ChatMessage> messages_;
  LineReader lines_;
  int64_t line_ = 0;
};

// The next question; nullopt at the end of stdin.
std::optional<std::string> Conversation::NextQuestion() {
  std::string line;
  for (;;) {
    if (interactive_) {
      fmt::print("> ");
      FlushOutput();
    }
    const LineReader::Result result = lines_.Read(interrupts_, &line);
    if (result == LineReader::Result::kEnd) {
      if (interactive_) fmt::print("\n");
      return std::nullopt;
    }
    if (result == LineReader::Result::kInterrupted) {
      Note("\n(Ctrl-D ends the conversation)");
      continue;
    }
    ++line_;
    if (line.ends_with('\r')) line.pop_back();
    if (line.empty()) continue;
    try {
      CheckUtf8(line, fmt::format("standard input: line {}", line_));
    } catch (const BadInput& error) {
      if (!interactive_) throw;
      Note(error.what());
      continue;
    }
    return line;
  }
}

// The conversation as tokens that leave room for an answer, without its oldest turns if necessary;
// nullopt if the last question alone is too long.
std::optional<std::vector<int32_t>> Conversation::TokensInContext() {
  const int64_t room =
      std::min({*arguments_.max_new_tokens, kRoomForAnswer, engine_.context() / 4});
  const size_t first = arguments_.system.empty() ? 0 : 1;
  for (bool forgot = false;; forgot = true) {
    std::vector<int32_t> tokens = model_.Encode(messages_);
    if (static_cast<int64_t>(tokens.size()) + room <= engine_.context()) {
      if (forgot) {
        Note(fmt::format("(the oldest turns are forgotten: the context holds {} tokens)",
                         engine_.context()));
      }
      return tokens;
    }
    if (messages_.size() - first < 3) return std::nullopt;
    const auto oldest = messages_.begin() + static_cast<std::ptrdiff_t>(first);
    messages_.erase(oldest, oldest + 2);
  }
}

// Prints the answer as it comes. Ctrl-C ends it early.
Generation Conversation::Generate(std::vector<int32_t> tokens) {
  engine::Request request = model_.MakeRequest(arguments_);
  request.prompt = std::move(tokens);
  Generation answer(messages_.back().text, static_cast<int64_t>(request.prompt.size()),
                    model_.tokenizer, arguments_.stop_texts());
  const int64_t id = engine_.Submit(std::move(request));
  while (!engine_.done()) {
    const size_t shown = answer.text.size();
    for (const engine::Generated& token : engine_.Step()) answer.Add(token);
    if (answer.finish || interrupts_.ConsumeInterrupt()) {
      engine_.Cancel(id);
      answer.End();
    }
    if (!arguments_.json) {
      fmt::print("{}", SafeForTerminal(std::string_view(answer.text).substr(shown)));
      FlushOutput();
    }
  }
  return answer;
}

void Conversation::Answer(const std::string& question) {
  messages_.push_back({ChatMessage::Role::kUser, question});
  std::optional<std::vector<int32_t>> tokens = TokensInContext();
  if (!tokens) {
    messages_.pop_back();
    const std::string text = fmt::format(
        "standard input: line {} is too long for a context of {} tokens", line_, engine_.context());
    if (!interactive_) throw BadInput(text);
    Note(text);
    return;
  }
  const Generation answer = Generate(std::move(*tokens));
  if (arguments_.json) {
    PrintJson(answer, arguments_.log_probabilities);
  } else {
    fmt::print("\n");
  }
  FlushOutput();
  if (answer.finish == engine::Finish::kError) {
    FailRun("{}: {}", model_.file.path(), kErrorReason);
  }
  if (answer.finish == engine::Finish::kLength) {
    Note("(the answer was cut: --max-new-tokens or the context allow no more)");
  }
  messages_.push_back({ChatMessage::Role::kAssistant, answer.text});
}

void Conversation::Run() {
  Note(fmt::format("{} ({}), {} threads. Ctrl-C stops an answer, Ctrl-D ends the conversation.",
                   model_.file.path(), model_.chat->name(), NumThreads()));
  while (const std::optional<std::string> question = NextQuestion()) {
    Answer(*question);
  }
}

}  // namespace

void Chat(const GenerateArguments& arguments, const GenerateModel& model) {
  Conversation(arguments, model).Run();
}

}  // namespace riffle::cli
