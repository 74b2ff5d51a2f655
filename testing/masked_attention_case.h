// Attention with a mask or ALiBi slopes: a call of any shape, and its answer in double.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "riffle/attention.h"
#include "testing/rng.h"

namespace riffle::test {

// Elements of a dtype, made of floats.
struct Elements {
  DType dtype;
  std::vector<uint8_t> bytes;

  Elements(DType of, size_t n) : dtype(of), bytes(n * SizeOf(of)) {}
  void Put(size_t i, float x);
  double At(size_t i) const;
};

// The properties of a case; members that are not named keep their values.
struct MaskedSpec {
  DType q_dtype = DType::kF32, kv_dtype = DType::kF32, mask_dtype = DType::kF32;
  int group = 1, kv_heads = 2, dim = 32, page_size = 16;
  std::vector<int> q_lens = {1}, kv_lens = {100};
  bool causal = false;
  std::optional<int64_t> window = {};
  std::optional<float> soft_cap = {};
  bool one_token = false, one_head = true;  // of the mask
  int key_stride = 1;
  int hidden_of_8 = 4;     // how many of 8 keys the mask hides
  bool in_blocks = false;  // the mask hides whole blocks of 64 keys
  bool adds = true;        // the mask adds something to the keys that it does not hide
  bool slopes = false;
  bool sinks = false;
  bool poisoned = false;  // keys that no query sees, and keys hidden by chance, hold NaN
};

struct MaskedResult {
  std::vector<uint8_t> out;
  std::vector<float> lse;
  bool operator==(const MaskedResult& other) const;  // by the bit
};

// A call, its mask and its answer in double.
class MaskedCase {
 public:
  MaskedCase(const MaskedSpec& spec, uint64_t seed);

  size_t Tokens() const;
  int64_t MaskKeys() const;
  AttentionMask Mask() const;
  HeadsView Q() const;
  PagedKv Kv(const Elements& x) const;
  PagedBatch Batch() const;
  AttentionOptions Options() const;

  MaskedResult Run(const AttentionOptions& options) const;
  MaskedResult Run() const { return Run(Options()); }

  // The indices of an element of the mask, and of keys and values.
  size_t MaskAt(size_t token, int head, int key) const;
  size_t KvAt(size_t b, int head, int key) const;
  // Whether the options, without the mask, let a query of sequence b see a key.
  bool Sees(size_t b, int query, int key) const;

  // Empty if every result is within `tolerance` of the answer (lse within four times that),
  // otherwise a text about the first that is not.
  std::string Difference(const MaskedResult& result, double tolerance) const;

  MaskedSpec s;
  int heads;
  Rng rng;
  Elements q, mask;
  std::optional<Elements> keys, values;
  std::vector<int32_t> cu_q_lens, table;
  std::vector<float> slopes, sinks;
  int64_t pages = 0, max_pages = 0;

 private:
  // The answer for one query head.
  struct Row {
    std::vector<double> out;
    double lse;
  };

  float Number() { return static_cast<float>(rng.Unit() * 2 - 1); }
  size_t MaskSize() const;
  int64_t Pages(size_t b) const { return (s.kv_lens[b] + s.page_size - 1) / s.page_size; }
  void FillPages();
  void FillMask();
  void Poison();
  double Added(size_t token, int head, int key) const;  // what the mask adds; -inf: hidden
  Row Reference(size_t b, int query, size_t token, int head) const;
  std::string RowDifference(const MaskedResult& result, const Row& expected, size_t row,
                            double tolerance) const;
};

}  // namespace riffle::test
