// Two sequences that share the pages of a common prefix; each decodes one token. The second result
// is compared with that of the same sequence written by itself.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <random>
#include <span>
#include <vector>

#include "riffle/riffle.h"

namespace {

constexpr int64_t kQueryHeads = 8, kKvHeads = 2, kHeadDim = 64;

riffle::HeadsView Heads(const float* data, int64_t tokens, int64_t heads) {
  return {data, riffle::DType::kF32, tokens, heads, kHeadDim, heads * kHeadDim, kHeadDim};
}

// The keys and values of `tokens` tokens at the end of a sequence.
void Append(riffle::KvCache& cache, int64_t sequence, int64_t tokens, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> keys(tokens * kKvHeads * kHeadDim), values(keys.size());
  for (float& key : keys) key = normal(random);
  for (float& value : values) value = normal(random);
  const int64_t position = cache.Length(sequence);
  cache.Extend(sequence, tokens);
  cache.Write(0, sequence, position, Heads(keys.data(), tokens, kKvHeads),
              Heads(values.data(), tokens, kKvHeads));
}

std::vector<float> Decode(const riffle::KvCache& cache, std::span<const int64_t> sequences) {
  const std::vector<float> q(sequences.size() * kQueryHeads * kHeadDim, 0.5f);
  std::vector<float> out(q.size());
  const riffle::KvBatch batch = cache.Batch(sequences);
  riffle::PagedAttention(
      Heads(q.data(), static_cast<int64_t>(sequences.size()), kQueryHeads), cache.Keys(0),
      cache.Values(0),
      {{}, batch.kv_lens, batch.page_table.data(), batch.max_pages, batch.max_pages},
      {out.data(), kQueryHeads * kHeadDim, kHeadDim});
  return out;
}

}  // namespace

int main() {
  riffle::KvCache cache({.layers = 1, .kv_heads = kKvHeads, .head_dim = kHeadDim, .pages = 64});
  const int64_t first = cache.Create();
  Append(cache, first, 100, 1);              // the common prefix
  const int64_t second = cache.Fork(first);  // takes no page
  Append(cache, first, 1, 2);                // copies the page that both would write
  Append(cache, second, 1, 3);
  const int64_t alone = cache.Create();
  Append(cache, alone, 100, 1);
  Append(cache, alone, 1, 3);
  const std::vector<float> together = Decode(cache, std::vector<int64_t>{first, second});
  const std::vector<float> expected = Decode(cache, std::vector<int64_t>{alone});
  std::printf("%d pages used, %d of them by two sequences\n", static_cast<int>(cache.pages_used()),
              static_cast<int>(cache.pages_shared()));
  const bool same = std::equal(expected.begin(), expected.end(), together.end() - expected.size());
  std::printf("%s\n", same ? "the same bits as alone" : "not the bits of the sequence alone");
  return same && cache.pages_shared() == 6 ? 0 : 1;
}
