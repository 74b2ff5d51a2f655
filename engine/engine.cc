#include "engine/engine.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <new>
#include <string>
#include <utility>

#include "engine/choose.h"
#include "engine/forward.h"
#include "engine/scheduler.h"
#include "engine/stopwatch.h"
#include "riffle/error.h"
#include "riffle/kv_cache.h"

namespace riffle::engine {
namespace {

constexpr int64_t kDefaultPages = 2048;

[[noreturn]] void Fail(Code code, const std::string& text) { throw Error(code, text); }

void CheckSampling(const SamplingParams& sampling) {
  if (!(sampling.temperature >= 0 && std::isfinite(sampling.temperature))) {
    Fail(Code::kBadOption, "temperature = " + std::to_string(sampling.temperature) +
                               " is not a finite number of at least 0");
  }
  if (sampling.top_k < 0) {
    Fail(Code::kBadOption, "top_k = " + std::to_string(sampling.top_k) + " is not at least 0");
  }
  if (!(sampling.top_p >= 0 && sampling.top_p <= 1)) {
    Fail(Code::kBadOption, "top_p = " + std::to_string(sampling.top_p) + " is not in 0..1");
  }
  if (!(sampling.min_p >= 0 && sampling.min_p <= 1)) {
    Fail(Code::kBadOption, "min_p = " + std::to_string(sampling.min_p) + " is not in 0..1");
  }
  const Penalties& penalties = sampling.penalties;
  if (!(penalties.repetition > 0 && std::isfinite(penalties.repetition))) {
    Fail(Code::kBadOption, "repetition penalty = " + std::to_string(penalties.repetition) +
                               " is not a finite number above 0; 1 is off");
  }
  const auto check = [](const char* name, float value) {
    if (!(value >= -2 && value <= 2)) {
      Fail(Code::kBadOption, std::string(name) + " penalty = " + std::to_string(value) +
                                 " is not in -2..2; 0 is off");
    }
  };
  check("presence", penalties.presence);
  check("frequency", penalties.frequency);
}

void CheckOptions(const EngineOptions& options) {
  const auto at_least_one = [](const char* name, int64_t value) {
    if (value < 1) {
      Fail(Code::kBadOption,
           std::string(name) + " = " + std::to_string(value) + " is not at least 1");
    }
  };
  at_least_one("max_running", options.max_running);
  at_least_one("prefill_chunk", options.prefill_chunk);
  if (options.pages != 0) {
    at_least_one("pages", options.pages);
  }
  // page_size is the cache's to check.
}

KvCacheOptions CacheOptions(const ModelSpec& spec, const EngineOptions& options) {
  CheckOptions(options);
  KvCacheOptions cache;
  cache.layers = spec.layer_count();
  cache.kv_heads = spec.kv_heads;
  cache.head_dim = spec.head_dim;
  cache.pages = options.pages == 0 ? kDefaultPages : options.pages;
  cache.page_size = options.page_size;
  cache.dtype = options.kv.dtype;
  cache.format = options.kv.format;
  return cache;
}

int64_t ContextOf(const ModelSpec& spec, const EngineOptions& options) {
  if (options.context < 0 || options.context > spec.context_length) {
    Fail(Code::kBadOption, "context = " + std::to_string(options.context) +
                               " is not 0 (the model's) to " + std::to_string(spec.context_length) +
                               ", which the model holds");
  }
  return options.context == 0 ? spec.context_length : options.context;
}

}  // namespace

class Engine::Impl {
 public:
  Impl(const Model& model, const EngineOptions& options)
      : model_(model),
        context_(ContextOf(model.spec(), options)),
        cache_(CacheOptions(model.spec(), options)),
        scheduler_(cache_, {options.max_running, options.prefill_chunk, options.share_prefixes}),
        forward_(model, cache_, options.pool, context_),
        chooser_(model, options.seed, options.pool) {}

  int64_t Submit(Request request);
  const std::vector<Generated>& Step();
  bool done() const { return scheduler_.done(); }
  bool Cancel(int64_t request) noexcept;
  int64_t context() const { return context_; }
  Progress progress() const;
  EngineStats stats() const;

 private:
  struct Limits {
    int64_t max_new_tokens;
    SamplingParams sampling;
    int64_t stream;
    std::vector<int32_t> stop_tokens;
    bool log_probabilities;
    TokenCounts counts;  // empty without penalties

    bool StopsAt(int32_t token) const {
      return std::find(stop_tokens.begin(), stop_tokens.end(), token) != stop_tokens.end();
    }
  };

  void Check(const Request& request) const;
  void RunStep();
  void ChooseTokens(std::span<const Scheduler::Part> parts, std::span<const float> hidden);
  void Take(int64_t request, int32_t token, float log_probability) noexcept;
  void Forget(int64_t request) noexcept;
  void AddSeconds(std::span<const Scheduler::Part> parts, double seconds);

  const Model& model_;
  int64_t context_;
  KvCache cache_;
  Scheduler scheduler_;
  Forward forward_;
  Chooser chooser_;

  std::map<int64_t, Limits> limits_;  // of the requests that wait or run
  std::vector<Slice> batch_;
  std::vector<float> ready_;  // the hidden states of the rows that get a token
  std::vector<Choice> choices_;
  std::vector<int32_t> tokens_;
  std::vector<float> log_probabilities_;
  std::vector<Generated> generated_;
  EngineStats stats_;
  Progress progress_;
};

void Engine::Impl::Check(const Request& request) const {
  const ModelSpec& spec = model_.spec();
  const int64_t size = static_cast<int64_t>(request.prompt.size());
  if (size == 0) {
    Fail(Code::kBadShape, "the prompt is empty");
  }
  if (size > context_) {
    Fail(Code::kBadRange, "the prompt has " + std::to_string(size) + " tokens but the " +
                              (context_ < spec.context_length ? "" : "model's ") +
                              "context holds " + std::to_string(context_));
  }
  for (size_t i = 0; i < request.prompt.size(); ++i) {
    if (request.prompt[i] < 0 || request.prompt[i] >= spec.vocab_size) {
      Fail(Code::kBadRange,
           "prompt[" + std::to_string(i) + "] = " + std::to_string(request.prompt[i]) +
               " is not in the vocabulary of " + std::to_string(spec.vocab_size) + " tokens");
    }
  }
  if (request.max_new_tokens < 1) {
    Fail(Code::kBadOption,
         "max_new_tokens = " + std::to_string(request.max_new_tokens) + " is not at least 1");
  }
  CheckSampling(request.sampling);
  // The last new token takes no room in the cache: no later token attends to it.
  const int64_t max_cached = size + std::min(request.max_new_tokens - 1, context_ - size);
  const KvCacheOptions& cache = cache_.options();
  if (max_cached > cache.pages * cache.page_size) {
    Fail(Code::kOutOfPages, "a prompt of " + std::to_string(size) + " tokens and " +
                                std::to_string(request.max_new_tokens) +
                                " new ones do not fit into " + std::to_string(cache.pages) +
                                " pages of " + std::to_string(cache.page_size) + " tokens");
  }
}

int64_t Engine::Impl::Submit(Request request) {
  Check(request);
  const auto prompt_tokens = static_cast<int64_t>(request.prompt.size());
  const int64_t id = scheduler_.next_request();
  TokenCounts counts;
  if (request.sampling.penalties.any()) {
    counts = TokenCounts(request.prompt);
  }
  limits_.emplace_hint(
      limits_.end(), id,
      Limits{request.max_new_tokens, request.sampling, request.stream < 0 ? id : request.stream,
             std::move(request.stop_tokens), request.log_probabilities, std::move(counts)});
  try {
    scheduler_.Add(std::move(request.prompt));
  } catch (...) {
    limits_.erase(id);
    throw;
  }
  progress_.prompt_tokens += prompt_tokens;
  return id;
}

const std::vector<Generated>& Engine::Impl::Step() {
  generated_.clear();
  if (done()) {
    return generated_;
  }
  try {
    RunStep();
  } catch (...) {
    scheduler_.Undo();
    throw;
  }
  return generated_;
}

void Engine::Impl::RunStep() {
  const Stopwatch watch;
  const std::span<const Scheduler::Part> parts = scheduler_.Next();
  stats_.pages_peak = std::max(stats_.pages_peak, cache_.pages_used());
  generated_.reserve(parts.size());
  batch_.clear();
  for (const Scheduler::Part& part : parts) {
    const Scheduler::Entry& entry = *scheduler_.Find(part.request);
    batch_.push_back(
        {entry.sequence, entry.computed,
         std::span(entry.tokens)
             .subspan(static_cast<size_t>(entry.computed), static_cast<size_t>(part.count))});
  }
  const std::span<const float> hidden = forward_.Run(batch_);
  ChooseTokens(parts, hidden);
  // Nothing throws from here on.
  scheduler_.Computed();
  size_t next = 0;
  for (const Scheduler::Part& part : parts) {
    if (part.last) {
      Take(part.request, tokens_[next], log_probabilities_[next]);
      ++next;
    }
  }
  AddSeconds(parts, watch.seconds());
}

// Chooses a token for each part that is the last of its request, into tokens_.
void Engine::Impl::ChooseTokens(std::span<const Scheduler::Part> parts,
                                std::span<const float> hidden) {
  const size_t size = static_cast<size_t>(model_.spec().hidden_size);
  ready_.clear();
  choices_.clear();
  for (size_t i = 0; i < parts.size(); ++i) {
    if (!parts[i].last) {
      continue;
    }
    const auto state = hidden.subspan(i * size, size);
    ready_.insert(ready_.end(), state.begin(), state.end());
    Limits& limits = limits_.at(parts[i].request);
    if (limits.sampling.penalties.any()) {
      limits.counts.Reserve();  // so that Take cannot throw
    }
    const size_t position = scheduler_.Find(parts[i].request)->tokens.size();
    choices_.push_back({limits.sampling, limits.stream, static_cast<int64_t>(position),
                        limits.log_probabilities, limits.counts.counts()});
  }
  if (choices_.empty()) {
    return;
  }
  tokens_.resize(choices_.size());
  log_probabilities_.resize(choices_.size());
  chooser_.Choose(ready_, choices_, tokens_, log_probabilities_);
}

// Pre: memory for Append, the counts and the list of tokens has been reserved.
void Engine::Impl::Take(int64_t request, int32_t token, float log_probability) noexcept {
  const std::vector<int32_t>& stops = model_.spec().stop_tokens;
  Limits& limits = limits_.at(request);
  if (token != kNoToken) {
    scheduler_.Append(request, token);
    if (limits.sampling.penalties.any()) {
      limits.counts.Add(token);
    }
    ++progress_.new_tokens;
  }
  const Scheduler::Entry& entry = *scheduler_.Find(request);
  const int64_t size = static_cast<int64_t>(entry.tokens.size());
  std::optional<Finish> finish;
  if (token == kNoToken) {
    finish = Finish::kError;
    ++progress_.failed;
  } else if (std::find(stops.begin(), stops.end(), token) != stops.end() || limits.StopsAt(token)) {
    finish = Finish::kStop;
  } else if (size - entry.prompt_tokens >= limits.max_new_tokens || size > context_) {
    finish = Finish::kLength;
  }
  generated_.push_back({request, token, finish, log_probability});
  if (finish) {
    progress_.prompt_tokens_prefilled += entry.prompt_tokens;
    Forget(request);
    ++progress_.done;
  }
}

void Engine::Impl::Forget(int64_t request) noexcept {
  scheduler_.Remove(request);
  limits_.erase(request);
}

bool Engine::Impl::Cancel(int64_t request) noexcept {
  const Scheduler::Entry* entry = scheduler_.Find(request);
  if (entry == nullptr) {
    return false;
  }
  const int64_t prefilled = std::min(entry->computed, entry->prompt_tokens);
  progress_.prompt_tokens += prefilled - entry->prompt_tokens;
  progress_.prompt_tokens_prefilled += prefilled;
  ++progress_.cancelled;
  Forget(request);
  return true;
}

void Engine::Impl::AddSeconds(std::span<const Scheduler::Part> parts, double seconds) {
  int64_t prefill = 0;
  int64_t decode = 0;
  for (const Scheduler::Part& part : parts) {
    (part.prefill ? prefill : decode) += part.count;
  }
  const double share = static_cast<double>(prefill) / static_cast<double>(prefill + decode);
  stats_.prefill_tokens += prefill;
  stats_.decode_tokens += decode;
  stats_.prefill_seconds += seconds * share;
  stats_.decode_seconds += seconds * (1 - share);
  stats_.total_seconds += seconds;
  ++stats_.steps;
}

Progress Engine::Impl::progress() const {
  Progress progress = progress_;
  progress.waiting = static_cast<int64_t>(scheduler_.waiting().size());
  progress.running = static_cast<int64_t>(scheduler_.running().size());
  for (const auto& [request, entry] : scheduler_.running()) {
    progress.prompt_tokens_prefilled += std::min(entry.computed, entry.prompt_tokens);
  }
  return progress;
}

EngineStats Engine::Impl::stats() const {
  EngineStats stats = stats_;
  stats.shared_tokens = scheduler_.shared_tokens();
  stats.preemptions = scheduler_.preemptions();
  stats.attention_seconds = forward_.attention_seconds();
  stats.lm_head_seconds = chooser_.lm_head_seconds();
  stats.sampling_seconds = chooser_.sampling_seconds();
  stats.pages_total = cache_.options().pages;
  stats.pages_used = cache_.pages_used();
  stats.pages_reusable = cache_.stats().pages_reusable;
  return stats;
}

namespace {

// Calls `f`; if memory runs out, throws Error(kOutOfMemory).
template <typename F>
decltype(auto) Allocating(const F& f) {
  try {
    return f();
  } catch (const std::bad_alloc&) {
    Fail(Code::kOutOfMemory, "no memory for the engine's requests and their batch");
  }
}

}  // namespace

Engine::Engine(const Model& model, const EngineOptions& options)
    : impl_(Allocating([&] { return std::make_unique<Impl>(model, options); })) {}
Engine::~Engine() = default;
int64_t Engine::Submit(Request request) {
  return Allocating([&] { return impl_->Submit(std::move(request)); });
}
const std::vector<Generated>& Engine::Step() {
  return Allocating([&]() -> const std::vector<Generated>& { return impl_->Step(); });
}
bool Engine::done() const { return impl_->done(); }
bool Engine::Cancel(int64_t request) noexcept { return impl_->Cancel(request); }
int64_t Engine::context() const { return impl_->context(); }
Progress Engine::progress() const { return impl_->progress(); }
EngineStats Engine::stats() const { return impl_->stats(); }

}  // namespace riffle::engine
