// Who runs in the next step, and whose pages give way: continuous batching over a KvCache. It knows
// lengths and tokens, nothing of the model.
//
// - Requests wait in the order of arrival and are admitted while the pool has pages for their
//   prompt.
// - A step takes every request that decodes, and up to `prefill_chunk` tokens of prompts.
// - A request whose prompt begins like one that runs forks that one's pages, and waits for it to be
//   prefilled so far.
// - A step that fails is undone: requests are as before it, except that those which gave way still
//   wait. Next() alone allocates, so nothing behind it fails.
// - When a sequence cannot grow, the request that arrived last gives its pages back and waits
//   again, at the front, with its tokens; they are computed again. So the first to arrive always
//   goes on.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "riffle/kv_cache.h"

namespace riffle::engine {

struct SchedulerOptions {
  int64_t max_running = 64;
  int64_t prefill_chunk = 512;
  bool share_prefixes = true;
};

class Scheduler {
 public:
  enum class State : uint8_t { kWaiting, kRunning, kDone };

  struct Entry {
    State state = State::kWaiting;
    std::vector<int32_t> tokens;  // the prompt, then what was generated
    int64_t prompt_tokens = 0;
    int64_t sequence = 0;  // of the cache; 0: none
    int64_t computed = 0;  // tokens whose keys and values are in the cache
  };

  // A part of a step: tokens [computed, computed + count) of a request, for which the sequence has
  // been extended already.
  struct Part {
    int64_t request;
    int64_t count;
    bool prefill;  // tokens of the prompt, or computed again
    bool last;     // all tokens are computed then, so a new one follows
  };

  Scheduler(KvCache& cache, const SchedulerOptions& options) : cache_(cache), options_(options) {}

  // Returns the request's number: 0, 1, 2...
  int64_t Add(std::vector<int32_t> prompt);

  // The parts of the next step, in the order of requests. Not empty unless done(). If it throws,
  // call Undo().
  std::span<const Part> Next();
  // Takes the step of the last Next() back, which may have been half done.
  void Undo() noexcept;

  // The parts of Next() have been computed.
  void Computed() noexcept;
  // A token of a request for which a new one follows.
  void Append(int64_t request, int32_t token) noexcept;
  // The request needs no further token: its pages are free.
  void Finish(int64_t request) noexcept;

  const Entry& entry(int64_t request) const { return entries_[static_cast<size_t>(request)]; }
  bool done() const { return waiting_.empty() && running_.empty(); }
  int64_t waiting() const { return static_cast<int64_t>(waiting_.size()); }
  int64_t running() const { return static_cast<int64_t>(running_.size()); }
  int64_t requests() const { return static_cast<int64_t>(entries_.size()); }
  int64_t preemptions() const { return preemptions_; }
  int64_t shared_tokens() const { return shared_tokens_; }

 private:
  Entry& At(int64_t request) { return entries_[static_cast<size_t>(request)]; }
  int64_t PagesFor(int64_t tokens) const;
  int64_t PagesPromised() const;
  bool Admit(int64_t request);
  void AdmitWaiting();
  bool Grow(int64_t request, int64_t tokens);
  void Requeue(int64_t request) noexcept;
  void Preempt(int64_t request) noexcept;

  KvCache& cache_;
  SchedulerOptions options_;
  std::vector<Entry> entries_;
  // Each has room for all requests, so that no step needs memory for them.
  std::vector<int64_t> waiting_;   // ascending
  std::vector<int64_t> running_;   // ascending
  std::vector<int64_t> admitted_;  // in this step
  std::vector<Part> parts_;
  int64_t preemptions_ = 0;
  int64_t shared_tokens_ = 0;
};

}  // namespace riffle::engine
