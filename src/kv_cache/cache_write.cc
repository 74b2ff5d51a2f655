// Writes tokens into the pages of a sequence.
#include <limits>

#include "core/lease.h"
#include "core/targets.h"
#include "kv_cache/kv_cache_impl.h"
#include "kv_cache/token_writer.h"

namespace riffle {
namespace {

// Writes tokens to the pages that hold a sequence's positions.
struct SequenceWriters {
  const kv_cache::TokenWriter keys;
  const kv_cache::TokenWriter values;
  const int32_t* pages;
  const int64_t page_size;
  const int64_t position;  // of token 0

  int64_t token_bytes() const { return keys.token_bytes() + values.token_bytes(); }

  void Write(int64_t begin, int64_t end) const {
    while (begin < end) {
      const int64_t page = (position + begin) / page_size;
      int64_t offset = position + begin - page * page_size;
      const int64_t stop = std::min(end, begin + page_size - offset);
      for (; begin < stop; ++begin, ++offset) {
        keys.Write(begin, pages[page], offset);
        values.Write(begin, pages[page], offset);
      }
    }
    kv_cache::FlushWrites(keys, values);
  }
};

}  // namespace

void KvCache::Impl::CheckInput(const char* name, const HeadsView& in, int64_t tokens,
                               int64_t head_dim) const {
  core::Check(in.tokens == tokens && in.heads == options_.kv_heads && in.head_dim == head_dim,
              Code::kBadShape, name, " is [", in.tokens, ", ", in.heads, ", ", in.head_dim,
              "] instead of [", tokens, ", ", options_.kv_heads, ", ", head_dim, "]");
  core::Check(in.dtype <= DType::kBF16, Code::kBadDType, name, " is ", Name(in.dtype),
              " but the cache takes float32, float16 or bfloat16");
  if (tokens == 0) {
    return;
  }
  core::Check(in.data != nullptr, Code::kBadShape, name, " is null");
  // Cannot overflow for any strides, as `tokens` is a length and kv_heads fits in memory.
  using Wide = __int128;
  const Wide size = static_cast<Wide>(SizeOf(in.dtype));
  const Wide across_tokens = size * in.token_stride * (tokens - 1);
  const Wide across_heads = size * in.head_stride * (options_.kv_heads - 1);
  const Wide begin = static_cast<Wide>(reinterpret_cast<uintptr_t>(in.data)) +
                     std::min<Wide>(across_tokens, 0) + std::min<Wide>(across_heads, 0);
  const Wide end = static_cast<Wide>(reinterpret_cast<uintptr_t>(in.data)) +
                   std::max<Wide>(across_tokens, 0) + std::max<Wide>(across_heads, 0) +
                   size * head_dim;
  core::Check(begin >= 0 && end <= static_cast<Wide>(std::numeric_limits<uintptr_t>::max()),
              Code::kBadShape, name, " with strides of ", in.token_stride, " and ", in.head_stride,
              " elements reaches beyond the address space");
  const Wide own = static_cast<Wide>(reinterpret_cast<uintptr_t>(storage_.data()));
  core::Check(end <= own || begin >= own + layout_.total, Code::kOverlap, name,
              " lies in the cache's own storage; copy it first");
}

void KvCache::Impl::Write(int64_t layer, int64_t seq, int64_t position, const HeadsView& keys,
                          const HeadsView& values, ThreadPool* pool) {
  CheckLayer(layer);
  Sequence& sequence = Find(seq);
  const int64_t tokens = keys.tokens;
  core::Check(tokens >= 0, Code::kBadShape, "keys has ", tokens, " tokens");
  core::Check(position >= 0 && position <= sequence.length && tokens <= sequence.length - position,
              Code::kBadRange, "position = ", position, " with ", tokens,
              " tokens is not in the length ", sequence.length, " of seq = ", seq);
  CheckInput("keys", keys, tokens, layout_.keys.head_dim);
  CheckInput("values", values, tokens, layout_.values.head_dim);
  if (tokens == 0) {
    return;
  }
  core::EnsureTarget();
  const int64_t page_size = options_.page_size;
  const kv_cache::WriteKernels& kernels = kv_cache::GetWriteKernels();
  const SequenceWriters writers{{kernels, keys, Keys(layer)},
                                {kernels, values, Values(layer)},
                                sequence.pages.data(),
                                page_size,
                                position};
  const auto make_private = [&] {
    MakePrivate(sequence, position / page_size, kv_cache::CeilDiv(position + tokens, page_size));
  };
  const int64_t token_bytes = writers.token_bytes();
  if (tokens < kv_cache::kMinParallelBytes / token_bytes) {
    make_private();
    return writers.Write(0, tokens);
  }
  core::Lease lease(pool);  // may throw, so before anything is changed
  make_private();
  // Tasks take whole pages: two layers of 16384 tokens of 8 heads of 128 (f32 to f16) then take 13
  // ms on two threads (22 on one); tasks that ended inside pages took 20.
  const int64_t chunk =
      kv_cache::CeilDiv(kv_cache::CeilDiv(kv_cache::kTaskBytes, token_bytes), page_size) *
      page_size;
  const int64_t offset = position % page_size;
  lease.Run(kv_cache::CeilDiv(offset + tokens, chunk), [&](int64_t task, uint8_t*) {
    writers.Write(std::max<int64_t>(0, task * chunk - offset),
                  std::min(tokens, (task + 1) * chunk - offset));
  });
}

}  // namespace riffle
