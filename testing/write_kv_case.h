// A call of WriteKv on arrays between bytes that must not change, and the bytes that it must write.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "riffle/write_kv.h"
#include "testing/attention_case.h"
#include "testing/rng.h"

namespace riffle::test {

enum class ScaleKind : uint8_t { kNone, kTensor, kPerHead, kPerRow, kGrouped };

// How the keys, or the values, of a pool are coded.
struct SideSpec {
  DType dtype = DType::kF32;
  KvFormat format = KvFormat::kPlain;
  int64_t head_dim = 64;
  ScaleKind scales = ScaleKind::kNone;
  DType scale_dtype = DType::kF32;
  int64_t group = 32;  // elements per scale with kGrouped
  float divisor = 1.0f;
  bool compute = false;
};

std::string Describe(const SideSpec& spec);

struct WriteSpec {
  SideSpec keys, values;
  DType in_dtype = DType::kF32;
  Layout layout = Layout::kHND;
  int64_t tokens = 7;
  int64_t pages = 5;
  int64_t page_size = 4;
  int64_t kv_heads = 3;
  int64_t gap = 0;  // elements (bytes of a block format) between rows, pages and heads
  int shift = 0;    // bytes by which every array is misaligned
  bool int64_slots = false;
  std::vector<int64_t> slots = {};  // empty: random ones, some skipped, some equal
  uint64_t seed = 1;
};

// The keys, or the values, of a call: input, pool, scales, and twins of pool and scales that hold
// the expected bytes.
class WriteSide {
 public:
  WriteSide(const WriteSpec& spec, const SideSpec& side, Rng& rng);

  HeadsView in() const;
  PagedKvOut pages();

  // Puts token t's rows, quantised by the reference, into the twins.
  void Expect(int64_t token, int64_t page, int64_t offset);
  // Empty if every byte is as expected; any NaN code will do for a NaN.
  std::string Difference() const;
  // Restores the state before any call.
  void Reset();

 private:
  float Input(int64_t token, int64_t head, int64_t i) const;
  float ExpectScale(int64_t at, const std::vector<float>& x);
  void ExpectRow(int64_t row_at, int64_t scale_at, const std::vector<float>& x);

  WriteSpec spec_;
  SideSpec side_;
  PagedKvOut view_;
  int64_t in_row_ = 0;
  std::vector<uint8_t> in_, pool_, scales_, expected_pool_, expected_scales_;
  std::vector<uint8_t> first_pool_, first_scales_;
};

class WriteCase {
 public:
  explicit WriteCase(const WriteSpec& spec);

  // Makes the call; returns what differs from the reference afterwards.
  std::string Run(ThreadPool* pool = nullptr);
  void Call(const CallOptions& options);

  HeadsView keys() const { return keys_.in(); }
  HeadsView values() const { return values_.in(); }
  PagedKvOut key_pages() { return keys_.pages(); }
  PagedKvOut value_pages() { return values_.pages(); }
  std::string Difference() const { return keys_.Difference() + values_.Difference(); }

 private:
  WriteSpec spec_;
  Rng rng_;
  std::vector<int64_t> slots_;
  std::vector<int32_t> slots32_;
  WriteSide keys_, values_;
};

}  // namespace riffle::test
