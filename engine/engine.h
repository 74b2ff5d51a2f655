// Continuous batching over one page pool: requests arrive, their prompts are prefilled in chunks,
// all that are ready decode together, and what finishes gives its pages back.
//
// A request's tokens depend on the model, its prompt and its own parameters alone: not on what else
// runs, on the order of arrival, on the pages, chunks or threads.
//
// An engine may run for ever: nothing is kept of a request that has ended. Its pages stay in the
// cache under the names of their contents, and a later prompt that begins alike starts with them,
// until others need the room.
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

// The first four as riffle::Sample takes them, which states their meaning.
struct SamplingParams {
  float temperature = 0;  // 0: greedy
  int32_t top_k = 0;      // 0: off
  float top_p = 1;
  float min_p = 0;
  Penalties penalties = {};  // of the logits, before all else
};

struct Request {
  std::vector<int32_t> prompt;  // token ids, BOS included; 1 to the engine's context()
  int64_t max_new_tokens = 16;  // at least 1; the context's end stops a request too
  SamplingParams sampling = {};
  // Names the request's random numbers, together with the engine's seed; -1: the request's id.
  int64_t stream = -1;
  std::vector<int32_t> stop_tokens = {};  // beside those of the model
  bool log_probabilities = false;  // of its tokens; a second product with the LM head for each
};

enum class Finish {
  kStop,    // a stop token of the model or the request; it is the last token of the request
  kLength,  // max_new_tokens or the end of the context
  kError,   // the logits are NaN, or -inf all of them, so there is no token
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
  int64_t pages = 0;         // of the KV cache; 0: 2048, which 16-token pages make a full context
  int64_t page_size = 16;    // tokens
  int64_t max_running = 64;  // requests that hold pages at a time
  int64_t prefill_chunk = 512;  // tokens of prompts that a step takes on
  bool share_prefixes = true;   // begin with pages that the cache has of an equal prefix
  uint64_t seed = 0;            // of the samples
  int64_t context = 0;  // tokens of a request, prompt and generated; 0: as many as the model takes
  KvKind kv = {};       // how keys and values are kept
  ThreadPool* pool = nullptr;  // null: DefaultPool()
};

// Sums since the engine was made; seconds are wall time.
struct EngineStats {
  int64_t prefill_tokens = 0;  // computed in prefill, those recomputed after a preemption included
  int64_t decode_tokens = 0;   // computed in decode, one for each running request of a step
  int64_t shared_tokens = 0;   // of prompts, taken from another request's pages
  int64_t steps = 0;
  int64_t preemptions = 0;     // a request lost its pages to another and is computed again
  double prefill_seconds = 0;  // time in steps that had prompt tokens is split by tokens
  double decode_seconds = 0;
  double attention_seconds = 0;  // of all steps: attention, with writing keys and values
  double lm_head_seconds = 0;    // logits and their top-k, which are one fused operation
  double sampling_seconds = 0;   // the rest of choosing the tokens
  double total_seconds = 0;
  int64_t pages_total = 0;
  int64_t pages_used = 0;      // now, by requests
  int64_t pages_reusable = 0;  // now, by no request, with contents that a prompt may begin with
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
  int64_t done = 0;           // ended by themselves, those that failed among them
  int64_t failed = 0;         // ended with kError
  int64_t cancelled = 0;      // by Cancel()
  int64_t prompt_tokens = 0;  // of all requests so far; of cancelled ones those that were prefilled
  int64_t prompt_tokens_prefilled = 0;  // of these
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

  // Runs one batch: a token of every request that decodes and the next chunk of those that prefill.
  // The tokens that it made, in the order of request ids; valid until the next call. Empty when
  // prompts need more chunks yet. A request whose logits are NaN ends with kError, the others go
  // on.
  // Throws riffle::Error (kOutOfMemory). The engine is then as before the call and may go on: its
  // requests get the same tokens as if the step had not been tried. Those that gave their pages to
  // others in it are computed again.
  const std::vector<Generated>& Step();
  bool done() const;  // no request is waiting or running

  // Ends a request between two steps; no token of it comes any more. False: it has ended already,
  // or there never was one.
  bool Cancel(int64_t request) noexcept;

  int64_t context() const;  // the longest request in tokens, prompt and generated

  Progress progress() const;
  EngineStats stats() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace riffle::engine
