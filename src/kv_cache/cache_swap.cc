// Swaps sequences out to the caller's memory, an image [pages, layers, bytes of a page], and back.
#include <cstring>

#include "core/lease.h"
#include "kv_cache/kv_cache_impl.h"

namespace riffle {

// Counts the pages that the sequence has, or had before it was swapped out, in all layers.
int64_t KvCache::Impl::SwapBytes(int64_t seq) const {
  const int64_t pages = kv_cache::CeilDiv(FindEvenIfSwapped(seq).length, options_.page_size);
  return pages * options_.layers * layout_.page;
}

void KvCache::Impl::CheckSwapMemory(int64_t seq, const void* memory, size_t size) const {
  const auto need = static_cast<size_t>(SwapBytes(seq));
  core::Check(size >= need, Code::kBadShape, "memory has ", size, " bytes but seq = ", seq,
              " takes ", need);
  core::Check(memory != nullptr || need == 0, Code::kBadShape, "memory is null");
  const auto begin = reinterpret_cast<uintptr_t>(memory);
  const auto own = reinterpret_cast<uintptr_t>(storage_.data());
  core::Check(begin >= own + static_cast<uintptr_t>(layout_.total) || own >= begin + need,
              Code::kOverlap, "memory lies in the cache's own storage");
}

// Calls copy(offset in the image, page in a layer) for every page of the sequence in every layer.
template <typename Copy>
void KvCache::Impl::CopyPages(const Sequence& sequence, core::Lease& lease,
                              const Copy& copy) const {
  lease.Run(static_cast<int64_t>(sequence.pages.size()), [&](int64_t i, uint8_t*) {
    for (int64_t layer = 0; layer < options_.layers; ++layer) {
      copy((i * options_.layers + layer) * layout_.page,
           Page(layer, sequence.pages[static_cast<size_t>(i)]));
    }
  });
}

void KvCache::Impl::SwapOut(int64_t seq, std::span<uint8_t> memory, ThreadPool* pool) {
  Sequence& sequence = Find(seq);
  CheckSwapMemory(seq, memory.data(), memory.size());
  core::Lease lease(pool);
  CopyPages(sequence, lease, [&](int64_t at, const uint8_t* page) {
    std::memcpy(memory.data() + at, page, static_cast<size_t>(layout_.page));
  });
  const int64_t length = sequence.length;
  stats_.pages_swapped_out += static_cast<int64_t>(sequence.pages.size());
  Truncate(seq, 0);
  sequence.length = length;
  sequence.is_swapped_out = true;
}

void KvCache::Impl::SwapIn(int64_t seq, std::span<const uint8_t> memory, ThreadPool* pool) {
  auto& sequence = const_cast<Sequence&>(FindEvenIfSwapped(seq));
  core::Check(sequence.is_swapped_out, Code::kBadSequence, "seq = ", seq, " is not swapped out");
  CheckSwapMemory(seq, memory.data(), memory.size());
  const int64_t pages = kv_cache::CeilDiv(sequence.length, options_.page_size);
  core::Check(pages <= pool_.free(), Code::kOutOfPages, "seq = ", seq, " takes ", pages,
              " pages but ", pool_.free(), " of ", options_.pages, " are free");
  core::Lease lease(pool);  // may throw, so before anything is changed
  // SwapOut emptied the vector but did not free it, so push_back cannot throw.
  HWY_DASSERT(sequence.pages.capacity() >= static_cast<size_t>(pages));
  for (int64_t i = 0; i < pages; ++i) {
    sequence.pages.push_back(pool_.Take());
  }
  sequence.is_swapped_out = false;
  CopyPages(sequence, lease, [&](int64_t at, uint8_t* page) {
    std::memcpy(page, memory.data() + at, static_cast<size_t>(layout_.page));
  });
  stats_.pages_swapped_in += pages;
}

}  // namespace riffle
