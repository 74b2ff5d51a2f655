#include "riffle/write_kv.h"

#include <algorithm>
#include <span>

#include "core/entry_point.h"
#include "core/lease.h"
#include "core/scratch_layout.h"
#include "core/targets.h"
#include "kv_cache/slots.h"
#include "kv_cache/token_writer.h"
#include "kv_cache/write_check.h"
#include "kv_cache/write_kernels.h"

namespace riffle {
namespace {

// At most this many slots, those of a decoding step, are copied to the stack.
constexpr int64_t kFewTokens = 128;

// Writes keys and values of the tokens of a call.
struct Writers {
  const kv_cache::TokenWriter keys;
  const kv_cache::TokenWriter values;
  const int64_t page_size;

  int64_t token_bytes() const { return keys.token_bytes() + values.token_bytes(); }

  // Writes tokens [begin, end), in this order.
  void Write(std::span<const int64_t> slots, int64_t begin, int64_t end) const {
    for (int64_t token = begin; token < end; ++token) {
      const int64_t slot = slots[static_cast<size_t>(token)];
      if (slot != kv_cache::kSkipped) {
        const int64_t page = slot / page_size;
        const int64_t offset = slot - page * page_size;
        keys.Write(token, page, offset);
        values.Write(token, page, offset);
      }
    }
    kv_cache::FlushWrites(keys, values);
  }
};

}  // namespace

void WriteKv(const HeadsView& keys, const HeadsView& values, const IndexSpan& slots,
             const PagedKvOut& key_pages, const PagedKvOut& value_pages,
             const CallOptions& options) try {
  const core::EntryPoint entry;
  core::EnsureTarget();
  kv_cache::CheckWrite(keys, values, slots, key_pages, value_pages);
  const int64_t tokens = keys.tokens;
  const int64_t page_size = key_pages.page_size;
  const kv_cache::WriteKernels& kernels = kv_cache::GetWriteKernels();
  const Writers writers{{kernels, keys, key_pages}, {kernels, values, value_pages}, page_size};
  const bool is_large = tokens > kv_cache::kMinParallelBytes / writers.token_bytes();
  if (tokens <= kFewTokens && !is_large) {
    int64_t copy[kFewTokens];
    const std::span<int64_t> list = std::span(copy).first(static_cast<size_t>(tokens));
    kv_cache::CopySlots(slots, key_pages.num_pages, page_size, list);
    return writers.Write(list, 0, tokens);
  }
  core::Lease lease(options.pool);
  core::ScratchLayout layout;
  const auto copied = layout.Place<int64_t>(tokens);
  const auto table = kv_cache::SlotTable::Place(tokens, layout);
  uint8_t* const memory = lease.Shared(layout.bytes());
  const std::span<int64_t> list(copied.At(memory), static_cast<size_t>(tokens));
  kv_cache::CopySlots(slots, key_pages.num_pages, page_size, list);
  const bool streams = writers.keys.streams() || writers.values.streams();
  if (!is_large || (lease.threads() == 1 && !streams)) {
    return writers.Write(list, 0, tokens);
  }
  // Write no slot twice: neither threads nor streaming stores keep the order of tokens.
  kv_cache::SkipOverwritten(list, table, memory);
  const int64_t chunk = std::max<int64_t>(1, kv_cache::kTaskBytes / writers.token_bytes());
  lease.Run((tokens + chunk - 1) / chunk, [&](int64_t task, uint8_t*) {
    writers.Write(list, task * chunk, std::min(tokens, (task + 1) * chunk));
  });
} catch (...) {
  core::RethrowAsError();
}

}  // namespace riffle
