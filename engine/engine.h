// Continuous batching over one page pool: requests arrive, their prompts are prefilled in chunks,
// all that are ready decode together, and a finished request returns its pages.
//
// A request's tokens depend only on the model, its prompt and its own parameters: not on other
// requests, the order of arrival, the pages, chunks or threads.
//
// An engine may run forever: it keeps nothing of a request that has ended, except its pages. These
// stay in the cache under keys of their contents until others need the room, and a later prompt
// with the same beginning starts with them.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "engine/kv_kind.h"
#include "engine/model.h"
#include "engine/penalties.h"
#include "riffle/runtime.h"

namespace riffle::engine {

// The first four have the meaning of riffle::Sample's options.
struct SamplingParams {
  float temperature = 0;  // 0: greedy
  int32_t top_k = 0;      // 0: off
  float top_p = 1;
  float min_p = 0;
  Penalties penalties = {};  // applied to logits before everything else
};

struct Request {
  std::vector<int32_t> prompt;  // token ids, BOS included; 1 to the engine's context()
  int64_t max_new_tokens = 16;  // at least 1; the context's end stops a request too
  SamplingParams sampling = {};
  // Selects the request's random numbers, together with the engine's seed; -1: the request's id.
  int64_t stream = -1;
  std::vector<int32_t> stop_tokens = {};  // in addition to the model's
  bool log_probabilities = false;  // of its tokens; a second product with the LM head for each
};

enum class Finish {
  kStop,    // a stop token of the model or the request; it is the last token of the request
  kLength,  // max_new_tokens or the end of the context
  kError,   // a logit is NaN, or all are -inf, so there is no token
};

// A token of a request, and why it was the last one, if it was.
struct Generated {
  int64_t request;
  int32_t token;  // -1 if finish is kError
  std::optional<Finish> finish;
  // Natural logarithm of the token's probability, by the softmax of the logits without penalties,
  // temperature or filters; 0 unless the request asks for it.
  float log_probability = 0;
};

struct EngineOptions {
  int64_t pages = 0;            // of the KV cache; 0: 2048, with 16-token pages 32768 tokens
  int64_t page_size = 16;       // tokens
  int64_t max_running = 64;     // requests that hold pages at a time
  int64_t prefill_chunk = 512;  // prompt tokens that a step may prefill
  bool share_prefixes = true;   // start with cached pages of an equal prefix
  uint64_t seed = 0;            // of the samples
  int64_t context = 0;  // tokens of a request, prompt and generated; 0: as many as the model takes
  KvKind kv = {};       // how keys and values are kept
  ThreadPool* pool = nullptr;  // null: DefaultPool()
};

// Sums since the engine was made; seconds are wall time.
struct EngineStats {
  int64_t prefill_tokens = 0;  // computed in prefill, including recomputation after preemption
  int64_t decode_tokens = 0;   // computed in decode, one for each running request of a step
  int64_t shared_tokens = 0;   // prompt tokens whose pages another request had computed
  int64_t steps = 0;
  int64_t preemptions = 0;     // requests that lost their pages to others and are recomputed
  double prefill_seconds = 0;  // time in steps that had prompt tokens is split by tokens
  double decode_seconds = 0;
  double attention_seconds = 0;  // of all steps: attention, including writing keys and values
  double lm_head_seconds = 0;    // logits and their top-k, which are one fused operation
  double sampling_seconds = 0;   // the rest of choosing the tokens
  double total_seconds = 0;
  int64_t pages_total = 0;
  int64_t pages_used = 0;      // now, by running requests
  int64_t pages_reusable = 0;  // now: not in use, but with contents that a prompt may reuse
  int64_t pages_peak = 0;

  double prefill_tokens_per_second() const { return Rate(prefill_tokens, prefill_seconds); }
  double decode_tokens_per_second() const { return Rate(decode_tokens, decode_seconds); }

 private:
  static double Rate(int64_t tokens, double seconds) {
    return seconds > 0 ? static_cast<double>(tokens) / seconds : 0;
  }
};

// The queue now, and what has gone through it.
struct Progress {
  int64_t waiting = 0;  // requests
  int64_t running = 0;
  int64_t done = 0;           // ended by themselves, including failed ones
  int64_t failed = 0;         // ended with kError
  int64_t cancelled = 0;      // by Cancel()
  int64_t prompt_tokens = 0;  // of all requests so far; of cancelled ones only those prefilled
  int64_t prompt_tokens_prefilled = 0;  // of prompt_tokens
  int64_t new_tokens = 0;
};

class Engine {
 public:
  // `model` must outlive the engine. Throws riffle::Error: kBadOption for options outside their
  // limits, kOutOfMemory.
  explicit Engine(const Model& model, const EngineOptions& options = {});
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Queues a request; its id is 0, 1, 2... in the order of calls. Throws riffle::Error, naming the
  // argument: kBadShape for an empty prompt, kBadRange for a prompt longer than the context (or a
  // token outside the vocabulary), kBadOption for impossible sampling parameters or
  // max_new_tokens < 1, kOutOfPages if the whole pool could not hold the request, kOutOfMemory.
  int64_t Submit(Request request);

  // Runs one batch: a token of every request that decodes and the next chunk of those
  // that prefill. Returns the new tokens in the order of request ids, valid until the
  // next call; none if prompts need more chunks first. A request whose logits are NaN
  // ends with kError; the others go on. Throws riffle::Error (kOutOfMemory). The engine
  // is then as before the call and may go on: requests get the same tokens as if the
  // step had not been tried, but those that gave up their pages in it are computed
  // again.
  const std::vector<Generated>& Step();
  bool done() const;  // no request is waiting or running

  // Ends a request between two steps; no further token of it is returned. False if it has ended
  // already or never existed.
  bool Cancel(int64_t request) noexcept;

  int64_t context() const;  // the longest request in tokens, prompt and generated

  Progress progress() const;
  EngineStats stats() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace riffle::engine
