// A call of PagedAttention over a pool in which every byte that must not matter is NaN, and its
// answer by scalar loops in double that share no code with src/attention.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "riffle/attention.h"
#include "testing/buffers.h"
#include "testing/coded_pool.h"
#include "testing/kv_codes.h"

namespace riffle::test {

enum class KvData : uint8_t {
  kNormal,
  kHugeLogits,     // logits of some thousands
  kOneHotKey,      // one key's logit is far above the others
  kEqualKeys,      // every key the same: plain means
  kConstant,       // every value 0.1: all rounding errors of sums have the same sign
  kTiny,           // values near the smallest normal f32, of both signs
  kVisibleNaN,     // a NaN in some keys and values that some queries see and others do not
  kInfiniteLater,  // the last key's values are infinite, of both signs: only the last query sees it
};

struct AttentionSpec {
  std::vector<int> q_lens = {1};
  std::vector<int> kv_lens = {100};
  int kv_heads = 2;
  int group = 2;
  int dim = 64;
  int page_size = 16;
  DType q_dtype = DType::kF32;
  DType kv_dtype = DType::kF32;         // of keys and values; of their scales if int8
  bool int8 = false;                    // keys and values are int8 with a scale for each row
  std::optional<KvCoding> keys = {};    // replaces kv_dtype and int8 for keys
  std::optional<KvCoding> values = {};  // the same for values
  int value_dim = 0;                    // 0: dim
  int value_offset = -1;  // >= 0: values are the elements of their keys from this one on
  Layout layout = Layout::kHND;
  KvData data = KvData::kNormal;
  std::optional<float> scale = {};
  bool causal = true;
  std::optional<int64_t> window = {};
  std::optional<int64_t> window_right = {};
  std::optional<float> soft_cap = {};
  bool sinks = false;
  bool implicit_q_lens = false;  // cu_q_lens empty; every q_len is 1
  int shift = 0;                 // bytes by which every array is misaligned
  uint64_t seed = 1;             // of keys, values and queries: the same for equal positions
  uint64_t page_seed = 1;        // of the order of pages
  int first_sequence = 0;        // sequence i has the content of sequence first_sequence + i
};

KvCoding KeyCoding(const AttentionSpec& spec);
KvCoding ValueCoding(const AttentionSpec& spec);
inline int ValueDim(const AttentionSpec& spec) {
  return spec.value_dim > 0 ? spec.value_dim : spec.dim;
}

std::string Describe(const AttentionSpec& spec);

// Results as the call wrote them, without their gaps.
struct AttentionResult {
  int tokens = 0, heads = 0, dim = 0;
  DType dtype = DType::kF32;
  std::vector<uint8_t> out;  // [tokens][heads][dim]
  std::vector<float> lse;    // [tokens][heads]
  std::string damage;        // which bytes outside of the results were written; empty: none

  double Value(int token, int head, int i) const;
  // Whether `count` tokens from `token` on have the same bits as those of `other` from `at` on.
  bool SameBits(int token, const AttentionResult& other, int at, int count) const;
};

struct Expected {
  double value;
  double bound;  // how far from `value` an answer may be
};

class AttentionCase {
 public:
  explicit AttentionCase(const AttentionSpec& spec);

  int tokens() const { return tokens_; }
  int heads() const { return spec_.kv_heads * spec_.group; }

  HeadsView q() const;
  PagedKv keys() const { return keys_->view(); }
  PagedKv values() const;
  PagedBatch batch() const;
  AttentionOptions options() const;

  // Makes the call; its inputs are read-only meanwhile and end at a page that faults.
  AttentionResult Run(ThreadPool* pool = nullptr) const;

  // Empty if every result is within its bound; otherwise names the worst one.
  std::string Check(const AttentionResult& result) const;
  // The largest |error|, relative to 1 for values below 1.
  double LargestError(const AttentionResult& result) const;

 private:
  struct Row;  // a query head's logits, weights and bounds
  std::vector<double> Content(bool value, int seq, int kv_len, int position, int head) const;
  void FillPool();
  void FillQueries();
  Row Reference(int seq, int query, int head) const;
  void AppendOutputs(const Row& row, int seq, int kv_head) const;  // to expected_
  Expected Lse(const Row& row) const;
  void FindExpected() const;
  template <typename F>
  void Compare(const AttentionResult& result, const F& f) const;

  AttentionSpec spec_;
  int tokens_ = 0;
  int pages_ = 0;
  int max_pages_ = 0;
  std::vector<int32_t> cu_q_lens_, kv_lens_, table_;
  std::vector<float> sinks_;
  // Exact contents, [seq][position][kv_head][dim] and [token][head][dim].
  std::vector<std::vector<double>> k_, v_;
  std::vector<float> q_;
  mutable std::vector<Expected> expected_;
  std::shared_ptr<GuardedBuffer> q_bytes_;    // read-only
  std::shared_ptr<CodedPool> keys_, values_;  // read-only; no values where they are parts of keys
};

}  // namespace riffle::test
