#include "engine/scheduler.h"

#include <algorithm>
#include <new>
#include <utility>

#include "riffle/error.h"

namespace riffle::engine {
namespace {

// Makes room for `size` elements; grows by doubling.
template <typename T>
void Reserve(std::vector<T>& list, size_t size) {
  if (size > list.capacity()) {
    list.reserve(std::max(size, 2 * list.capacity()));
  }
}

int64_t SizeOf(const Scheduler::Entry& entry) { return static_cast<int64_t>(entry.tokens.size()); }

}  // namespace

int64_t Scheduler::Add(std::vector<int32_t> prompt) {
  Entry entry;
  entry.prompt_tokens = static_cast<int64_t>(prompt.size());
  entry.tokens = std::move(prompt);
  waiting_.emplace_hint(waiting_.end(), next_request_, std::move(entry));
  return next_request_++;
}

const Scheduler::Entry* Scheduler::Find(int64_t request) const {
  for (const Entries* entries : {&running_, &waiting_}) {
    if (const auto found = entries->find(request); found != entries->end()) {
      return &found->second;
    }
  }
  return nullptr;
}

int64_t Scheduler::PagesFor(int64_t tokens) const {
  const int64_t page_size = cache_.options().page_size;
  return (tokens + page_size - 1) / page_size;
}

// Pages that running requests have yet to take for tokens that they already have.
int64_t Scheduler::PagesReserved() const {
  int64_t pages = 0;
  for (const auto& [request, entry] : running_) {
    pages += PagesFor(SizeOf(entry)) - PagesFor(entry.computed);
  }
  return pages;
}

// For how many of the first keys a running request will have computed the pages when its prompt is
// done; 0 if it has them already.
int64_t Scheduler::PrefixPagesPending(std::span<const BlockKey> keys) const {
  int64_t soon = 0;
  const int64_t page_size = cache_.options().page_size;
  for (const auto& [request, entry] : running_) {
    const auto theirs = entry.pages.keys();
    const auto differ = std::mismatch(keys.begin(), keys.end(), theirs.begin(), theirs.end()).first;
    const int64_t pages = std::min<int64_t>(differ - keys.begin(), entry.prompt_tokens / page_size);
    if (pages > entry.computed / page_size) {
      soon = std::max(soon, pages);
    }
  }
  return soon;
}

Scheduler::Admission Scheduler::Admit(int64_t request, Entry& entry) {
  const int64_t page_size = cache_.options().page_size;
  std::span<const BlockKey> keys;
  if (options_.share_prefixes) {
    entry.pages.Extend(entry.tokens, page_size);
    // At least one token remains to be computed.
    keys = entry.pages.keys().first(static_cast<size_t>((SizeOf(entry) - 1) / page_size));
    if (PrefixPagesPending(keys) * page_size > cache_.Lookup(keys)) {
      return Admission::kWaitsForPrefix;
    }
  }
  Reserve(admitted_, admitted_.size() + 1);
  // Creates the sequence before counting: the pages that it finds may have been free until now.
  const int64_t sequence = cache_.Create(keys);
  const int64_t shared = cache_.Length(sequence);
  const int64_t pages = PagesFor(SizeOf(entry)) - shared / page_size;
  // Keeps one page for each running request, so that this one need not soon be preempted.
  const auto reserve = static_cast<int64_t>(running_.size());
  if (pages + reserve > cache_.pages_free() - PagesReserved()) {
    cache_.Free(sequence);
    return Admission::kNoPages;
  }
  shared_tokens_ += shared;
  entry.sequence = sequence;
  entry.computed = shared;
  admitted_.push_back(request);
  running_.insert(waiting_.extract(request));
  return Admission::kAdmitted;
}

// A request that waits for pages is not overtaken by smaller ones; one that waits for a prefix is.
void Scheduler::AdmitWaiting() {
  for (auto next = waiting_.begin(); next != waiting_.end();) {
    if (static_cast<int64_t>(running_.size()) >= options_.max_running) {
      return;
    }
    const auto candidate = next++;  // Admit() may take it out
    if (Admit(candidate->first, candidate->second) == Admission::kNoPages) {
      return;
    }
  }
}

// Takes the pages of a running request away and makes it wait again.
void Scheduler::Requeue(int64_t request) noexcept {
  auto node = running_.extract(request);
  Entry& entry = node.mapped();
  cache_.Free(entry.sequence);
  entry.sequence = 0;
  entry.computed = 0;
  waiting_.insert(std::move(node));
}

// Extends a running request's sequence, preempting later requests. False: it was preempted itself.
bool Scheduler::Grow(int64_t request, int64_t tokens) {
  const int64_t sequence = running_.at(request).sequence;
  for (;;) {
    try {
      cache_.Extend(sequence, tokens);
      return true;
    } catch (const Error& error) {
      if (error.code() != Code::kOutOfPages || running_.size() == 1) {
        throw;
      }
    }
    const int64_t last = running_.rbegin()->first;
    Requeue(last);
    ++preemptions_;
    if (last == request) {
      return false;
    }
  }
}

std::span<const Scheduler::Part> Scheduler::Next() {
  admitted_.clear();
  parts_.clear();
  AdmitWaiting();
  Reserve(parts_, running_.size());
  int64_t budget = options_.prefill_chunk;
  // Looked up by number each time: Grow() may remove this and later requests from running_.
  for (auto at = running_.begin(); at != running_.end();) {
    const int64_t request = at->first;
    Entry& entry = at->second;
    const int64_t left = SizeOf(entry) - entry.computed;
    const bool decode = left == 1 && entry.computed >= entry.prompt_tokens;
    const int64_t count = decode ? 1 : std::min(left, budget);
    if (count > 0) {
      if (count == left) {
        Reserve(entry.tokens, entry.tokens.size() + 1);  // so that Append cannot throw
      }
      if (!Grow(request, count)) {
        break;
      }
      parts_.push_back({request, count, !decode, count == left});
      budget -= decode ? 0 : count;
    }
    at = running_.upper_bound(request);
  }
  return parts_;
}

void Scheduler::Undo() noexcept {
  for (const Part& part : parts_) {
    const Entry& entry = running_.at(part.request);
    cache_.Truncate(entry.sequence, entry.computed);
  }
  parts_.clear();
  for (const int64_t request : admitted_) {
    if (const auto found = running_.find(request); found != running_.end()) {
      shared_tokens_ -= found->second.computed;
      Requeue(request);
    }
  }
  admitted_.clear();
}

// Gives computed full pages their keys. If memory runs out they stay without: other requests then
// cannot reuse these pages and compute their own.
void Scheduler::NamePages(Entry& entry) noexcept {
  try {
    const auto computed = std::span(entry.tokens).first(static_cast<size_t>(entry.computed));
    const int64_t page_size = cache_.options().page_size;
    entry.pages.Extend(computed, page_size);
    const auto pages = static_cast<size_t>(entry.computed / page_size);
    cache_.SetBlockKeys(entry.sequence, entry.pages.keys().first(pages));
  } catch (const std::bad_alloc&) {
  } catch (const Error&) {  // kOutOfMemory
  }
}

void Scheduler::Computed() noexcept {
  const int64_t page_size = cache_.options().page_size;
  for (const Part& part : parts_) {
    Entry& entry = running_.at(part.request);
    const int64_t before = entry.computed;
    entry.computed += part.count;
    if (options_.share_prefixes && entry.computed / page_size > before / page_size) {
      NamePages(entry);
    }
  }
}

void Scheduler::Append(int64_t request, int32_t token) noexcept {
  running_.at(request).tokens.push_back(token);
}

void Scheduler::Remove(int64_t request) noexcept {
  if (const auto found = running_.find(request); found != running_.end()) {
    cache_.Free(found->second.sequence);
    running_.erase(found);
  } else {
    waiting_.erase(request);
  }
}

}  // namespace riffle::engine
