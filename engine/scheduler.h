// Who runs in the next step, and whose pages give way: continuous batching over a KvCache. It knows
// lengths and tokens, nothing of the model.
//
// - Requests wait in the order of arrival and are admitted while the pool has pages for their
//   prompt.
// - A step takes every request that decodes, and up to `prefill_chunk` tokens of prompts.
// - Full pages are named by their tokens in the cache (PrefixKeys). A request begins with the pages
//   of its prompt that the cache has, of requests that are long gone too; where a running one is
//   about to compute more of them, it waits for that.
// - A step that fails is undone: requests are as before it, except that those which gave way still
//   wait. Next() alone allocates, so nothing behind it fails.
// - When a sequence cannot grow, the request that arrived last gives its pages back and waits
//   again, at the front, with its tokens; they are computed again. So the first to arrive always
//   goes on.
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
    PrefixKeys pages;      // names of the first full pages
  };
  // Requests by their numbers. They change sides as nodes, which allocates nothing.
  using Entries = std::map<int64_t, Entry>;

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
  int64_t next_request() const { return next_request_; }

  // The parts of the next step, in the order of requests. Not empty unless done(). If it throws,
  // call Undo().
  std::span<const Part> Next();
  // Takes the step of the last Next() back, which may have been half done.
  void Undo() noexcept;

  // The parts of Next() have been computed.
  void Computed() noexcept;
  // A token of a running request for which a new one follows.
  void Append(int64_t request, int32_t token) noexcept;
  // The request needs no further token: it is forgotten, and its pages are free. Between steps and
  // behind Computed(), of a request that waits or runs.
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
  int64_t PagesPromised() const;
  int64_t PagesSoon(std::span<const BlockKey> keys) const;
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
