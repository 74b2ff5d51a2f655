#include "engine/scheduler.h"

#include <algorithm>
#include <utility>

#include "riffle/error.h"

namespace riffle::engine {
namespace {

int64_t CommonPrefix(std::span<const int32_t> a, std::span<const int32_t> b) {
  const size_t limit = std::min(a.size(), b.size());
  return std::mismatch(a.begin(), a.begin() + static_cast<std::ptrdiff_t>(limit), b.begin()).first -
         a.begin();
}

// Room for `size` elements; grows by doubling.
template <typename T>
void Reserve(std::vector<T>& list, size_t size) {
  if (size > list.capacity()) {
    list.reserve(std::max(size, 2 * list.capacity()));
  }
}

}  // namespace

int64_t Scheduler::Add(std::vector<int32_t> prompt) {
  Entry entry;
  entry.prompt_tokens = static_cast<int64_t>(prompt.size());
  entry.tokens = std::move(prompt);
  const size_t count = entries_.size() + 1;
  Reserve(entries_, count);
  Reserve(waiting_, count);
  Reserve(running_, count);
  Reserve(admitted_, count);
  Reserve(parts_, count);
  entries_.push_back(std::move(entry));
  waiting_.push_back(requests() - 1);
  return requests() - 1;
}

int64_t Scheduler::PagesFor(int64_t tokens) const {
  const int64_t page_size = cache_.options().page_size;
  return (tokens + page_size - 1) / page_size;
}

// Pages that the running ones will still take for tokens they have.
int64_t Scheduler::PagesPromised() const {
  int64_t pages = 0;
  for (const int64_t request : running_) {
    const Entry& e = entry(request);
    pages += PagesFor(static_cast<int64_t>(e.tokens.size())) - PagesFor(e.computed);
  }
  return pages;
}

// False: not now.
bool Scheduler::Admit(int64_t request) {
  Entry& e = At(request);
  const int64_t size = static_cast<int64_t>(e.tokens.size());
  int64_t source = -1;
  int64_t shared = 0;
  for (const int64_t other : running_) {
    if (!options_.share_prefixes) {
      break;
    }
    // At least one token remains to be computed. What the other one has not computed yet is worth
    // waiting for in its prompt only.
    const Entry& o = entry(other);
    const int64_t common = std::min(
        {CommonPrefix(e.tokens, o.tokens), size - 1, std::max(o.computed, o.prompt_tokens)});
    if (common > shared) {
      shared = common;
      source = other;
    }
  }
  // Less than a page would save nothing: the fork's first write copies it.
  if (shared < cache_.options().page_size) {
    shared = 0;
  } else if (shared > entry(source).computed) {
    return false;  // until the other one has computed it
  }
  // And one for each that runs already, so that it need not give way at once.
  const int64_t pages = PagesFor(size) - shared / cache_.options().page_size;
  if (pages + running() > cache_.pages_free() - PagesPromised()) {
    return false;
  }
  if (shared > 0) {
    e.sequence = cache_.Fork(entry(source).sequence);
    cache_.Truncate(e.sequence, shared);
  } else {
    e.sequence = cache_.Create();
  }
  shared_tokens_ += shared;
  e.computed = shared;
  e.state = State::kRunning;
  admitted_.push_back(request);
  running_.insert(std::upper_bound(running_.begin(), running_.end(), request), request);
  return true;
}

void Scheduler::AdmitWaiting() {
  bool full = false;
  for (const int64_t request : waiting_) {
    full = full || running() >= options_.max_running;
    if (full) {
      break;
    }
    if (!Admit(request)) {
      // One that waits for pages is not overtaken by smaller ones; one that waits for a prefix is.
      full = full || PagesFor(static_cast<int64_t>(At(request).tokens.size())) + 1 >
                         cache_.pages_free() - PagesPromised();
    }
  }
  std::erase_if(waiting_, [this](int64_t r) { return entry(r).state == State::kRunning; });
}

// A running request gives its pages back and waits again.
void Scheduler::Requeue(int64_t request) noexcept {
  Entry& e = At(request);
  cache_.Free(e.sequence);
  e.sequence = 0;
  e.computed = 0;
  e.state = State::kWaiting;
  running_.erase(std::find(running_.begin(), running_.end(), request));
  const auto place = std::lower_bound(waiting_.begin(), waiting_.end(), request);
  if (place == waiting_.end() || *place != request) {  // it is there if AdmitWaiting() failed
    waiting_.insert(place, request);
  }
}

void Scheduler::Preempt(int64_t request) noexcept {
  Requeue(request);
  ++preemptions_;
}

// Extends a running request's sequence; later ones give way. False: it had to give way itself.
bool Scheduler::Grow(int64_t request, int64_t tokens) {
  for (;;) {
    try {
      cache_.Extend(At(request).sequence, tokens);
      return true;
    } catch (const Error& error) {
      if (error.code() != Code::kOutOfPages || running() == 1) {
        throw;
      }
    }
    const int64_t last = running_.back();
    Preempt(last);
    if (last == request) {
      return false;
    }
  }
}

std::span<const Scheduler::Part> Scheduler::Next() {
  admitted_.clear();
  parts_.clear();
  AdmitWaiting();
  int64_t budget = options_.prefill_chunk;
  // By index: later requests may leave running_ in the loop.
  for (size_t i = 0; i < running_.size(); ++i) {
    const int64_t request = running_[i];
    const Entry& e = entry(request);
    const int64_t left = static_cast<int64_t>(e.tokens.size()) - e.computed;
    const bool decode = left == 1 && e.computed >= e.prompt_tokens;
    const int64_t count = decode ? 1 : std::min(left, budget);
    if (count == 0) {
      continue;
    }
    if (count == left) {
      Reserve(At(request).tokens, e.tokens.size() + 1);  // for Append
    }
    if (!Grow(request, count)) {
      break;
    }
    parts_.push_back({request, count, !decode, count == left});
    budget -= decode ? 0 : count;
  }
  return parts_;
}

void Scheduler::Undo() noexcept {
  for (const Part& part : parts_) {
    cache_.Truncate(entry(part.request).sequence, entry(part.request).computed);
  }
  parts_.clear();
  for (const int64_t request : admitted_) {
    if (entry(request).state == State::kRunning) {
      shared_tokens_ -= entry(request).computed;
      Requeue(request);
    }
  }
  admitted_.clear();
}

void Scheduler::Computed() noexcept {
  for (const Part& part : parts_) {
    At(part.request).computed += part.count;
  }
}

void Scheduler::Append(int64_t request, int32_t token) noexcept {
  At(request).tokens.push_back(token);
}

void Scheduler::Finish(int64_t request) noexcept {
  Entry& e = At(request);
  cache_.Free(e.sequence);
  e.sequence = 0;
  e.state = State::kDone;
  running_.erase(std::find(running_.begin(), running_.end(), request));
}

}  // namespace riffle::engine
