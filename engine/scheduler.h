// Who runs in the next step, and who is preempted: continuous batching over a KvCache. It knows
// lengths and tokens, nothing of the model.
//
// - Requests wait in the order of arrival and are admitted while the pool has pages for their
//   prompt.
// - A step takes every request that decodes, and up to `prefill_chunk` tokens of prompts.
// - Full pages have keys made from their tokens (PrefixKeys). A request begins with those pages of
//   its prompt that the cache has, also from requests that have ended; if a running request is
//   about to compute more of them, the new one waits for that.
// - A step that fails is undone: requests are as before it, but preempted ones still wait. Only
//   Next() allocates, so nothing after it can fail.
// - When a sequence cannot grow, the request that arrived last is preempted: it loses its pages,
//   keeps its tokens and waits at the front; the tokens are computed again. So the request that
//   arrived first always makes progress.
// - Nothing is kept of a request that has finished or was cancelled, apart from its pages in the
//   cache until they are needed. Time and memory of a step depend on those that run and wait.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "engine/prefix_keys.h"
#include "riffle/kv_cache.h"

namespace riffle::engine {

struct SchedulerOptions {
  int64_t max_running = 64;
  int64_t prefill_chunk = 512;
  bool share_prefixes = true;
};

class Scheduler {
 public:
  struct Entry {
    std::vector<int32_t> tokens;  // the prompt, then what was generated
    int64_t prompt_tokens = 0;
    int64_t sequence = 0;  // of the cache; 0: none
    int64_t computed = 0;  // tokens whose keys and values are in the cache
    PrefixKeys pages;      // keys of the first full pages
  };
  // Requests by number. They move between the two maps as nodes, which allocates nothing.
  using Entries = std::map<int64_t, Entry>;

  // A part of a step: tokens [computed, computed + count) of a request, for which the sequence has
  // been extended already.
  struct Part {
    int64_t request;
    int64_t count;
    bool prefill;  // prompt tokens, or tokens computed again
    bool last;     // after this part all tokens are computed, so a new one follows
  };

  Scheduler(KvCache& cache, const SchedulerOptions& options) : cache_(cache), options_(options) {}

  // Returns the request's number: 0, 1, 2...
  int64_t Add(std::vector<int32_t> prompt);
  int64_t next_request() const { return next_request_; }

  // The parts of the next step, in the order of requests. Not empty unless done(). If it throws,
  // call Undo().
  std::span<const Part> Next();
  // Undoes the step of the last Next(), even one that threw halfway.
  void Undo() noexcept;

  // Call it when the parts of Next() have been computed.
  void Computed() noexcept;
  // Adds the new token of a running request all of whose tokens have been computed.
  void Append(int64_t request, int32_t token) noexcept;
  // Forgets a request that needs no further token, and frees its pages. Call it between steps or
  // after Computed(), for a request that waits or runs.
  void Remove(int64_t request) noexcept;

  // Null for a request that neither waits nor runs.
  const Entry* Find(int64_t request) const;
  const Entries& running() const { return running_; }
  const Entries& waiting() const { return waiting_; }
  bool done() const { return waiting_.empty() && running_.empty(); }
  int64_t preemptions() const { return preemptions_; }
  int64_t shared_tokens() const { return shared_tokens_; }

 private:
  enum class Admission : uint8_t { kAdmitted, kNoPages, kWaitsForPrefix };

  int64_t PagesFor(int64_t tokens) const;
  int64_t PagesReserved() const;
  int64_t PrefixPagesPending(std::span<const BlockKey> keys) const;
  Admission Admit(int64_t request, Entry& entry);
  void AdmitWaiting();
  bool Grow(int64_t request, int64_t tokens);
  void NamePages(Entry& entry) noexcept;
  void Requeue(int64_t request) noexcept;

  KvCache& cache_;
  SchedulerOptions options_;
  int64_t next_request_ = 0;
  Entries waiting_;
  Entries running_;
  std::vector<int64_t> admitted_;  // in this step
  std::vector<Part> parts_;
  int64_t preemptions_ = 0;
  int64_t shared_tokens_ = 0;
};

}  // namespace riffle::engine
