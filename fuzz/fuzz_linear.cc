// Compares LinearTopK over Q8_0 weights with the prefilter, without it, and TopK over the result of
// Linear. All three must agree bit for bit, whatever the scales, the inputs and the bias are and
// however close logits lie to one another, on any SIMD target.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "fuzz/bytes.h"
#include "lm_head/choose_topk.h"
#include "riffle/linear_topk.h"
#include "riffle/runtime.h"
#include "riffle/topk.h"
#include "testing/rng.h"

namespace {

using riffle::DType;
using riffle::kQ8Block;
using riffle::kQ8BlockBytes;
using riffle::LinearOptions;
using riffle::MatrixView;
using riffle::WeightFormat;
using riffle::WeightView;
using riffle::fuzz::Bytes;
using riffle::lm_head::LinearTopKWith;
using riffle::lm_head::PrefilterMode;
using riffle::lm_head::PrefilterStats;

void Expect(bool ok) {
  if (!ok) std::abort();
}

struct Answer {
  std::vector<float> values;
  std::vector<int32_t> indices;

  Answer(int64_t rows, int64_t k)
      : values(static_cast<size_t>(rows * k)), indices(static_cast<size_t>(rows * k)) {}
  bool operator==(const Answer& other) const {
    return indices == other.indices &&
           std::memcmp(values.data(), other.values.data(), values.size() * sizeof(float)) == 0;
  }
};

class Case {
 public:
  explicit Case(Bytes& bytes) {
    rows_ = 1 + bytes.Take<uint8_t>() % 9;
    blocks_ = 1 + bytes.Take<uint8_t>() % 24;
    vocab_ = bytes.Between(1, 700);
    k_ = bytes.Between(1, vocab_);
    threads_ = 1 + bytes.Take<uint8_t>() % 3;
    const auto flags = bytes.Take<uint8_t>();
    options_.round_x = (flags & 1) != 0;
    const std::vector<std::string> targets = riffle::Targets();
    riffle::SetTarget(targets[bytes.Take<uint8_t>() % targets.size()]);
    riffle::test::Rng rng(bytes.Take<uint16_t>());
    x_.resize(static_cast<size_t>(rows_ * d()));
    for (float& x : x_) x = static_cast<float>(rng.Unit() - 0.5);
    w_.resize(static_cast<size_t>(vocab_ * blocks_ * kQ8BlockBytes));
    for (uint8_t& byte : w_) byte = static_cast<uint8_t>(rng.Below(256));
    for (int64_t block = 0; block < vocab_ * blocks_; ++block) {
      SetScale(block, static_cast<uint16_t>(0x2000 + rng.Below(0x800)));
    }
    if ((flags & 2) != 0) {
      bias_.resize(static_cast<size_t>(vocab_));
      for (float& bias : bias_) bias = static_cast<float>(rng.Unit());
      options_.bias = {bias_.data(), DType::kF32, vocab_};
    }
    while (!bytes.empty()) Change(bytes);
  }

  void Run() {
    riffle::ThreadPool pool(threads_);
    options_.pool = &pool;
    const MatrixView x{x_.data(), DType::kF32, rows_, d(), d()};
    const WeightView w{w_.data(), WeightFormat::kQ8_0, vocab_, d(), blocks_, 1};
    Answer filtered(rows_, k_), plain(rows_, k_), expected(rows_, k_);
    PrefilterStats stats;
    riffle::lm_head::LinearTopKWith(PrefilterMode::kAlways, x, w, k_, Out(filtered), options_,
                                    &stats);
    riffle::lm_head::LinearTopKWith(PrefilterMode::kNever, x, w, k_, Out(plain), options_, nullptr);
    Expect(stats.prefiltered + stats.fell_back == rows_);
    Expect(filtered == plain);
    std::vector<float> y(static_cast<size_t>(rows_ * vocab_));
    riffle::Linear(x, w, {y.data(), vocab_}, options_);
    riffle::TopK({y.data(), DType::kF32, rows_, vocab_, vocab_}, k_,
                 {expected.values.data(), k_, expected.indices.data(), k_});
    Expect(plain == expected);
  }

 private:
  int64_t d() const { return blocks_ * kQ8Block; }
  riffle::LinearTopKOut Out(Answer& answer) const {
    return {answer.values.data(), k_, answer.indices.data(), k_};
  }
  uint8_t* Block(int64_t block) { return w_.data() + block * kQ8BlockBytes; }
  void SetScale(int64_t block, uint16_t bits) { std::memcpy(Block(block), &bits, sizeof(bits)); }

  void Change(Bytes& bytes) {
    const int64_t row = bytes.Take<uint8_t>() % rows_;
    const int64_t column = bytes.Between(0, vocab_ - 1);
    const int64_t input = bytes.Between(0, d() - 1);
    float& x = x_[static_cast<size_t>(row * d() + input)];
    switch (bytes.Take<uint8_t>() % 8) {
      case 0:  // any scale: NaN, infinite, zero, denormal, negative
        return SetScale(column * blocks_ + input / kQ8Block, bytes.Take<uint16_t>());
      case 1:  // any input
        x = bytes.Take<float>();
        return;
      case 2:  // a row of any size
        return ScaleRow(row, bytes.Take<int8_t>());
      case 3:  // one large input, which makes the quantisation step of its block large
        x = std::ldexp(1.0f, bytes.Take<int8_t>() / 4);
        return;
      case 4:
        if (!bias_.empty()) bias_[static_cast<size_t>(column)] = bytes.Take<float>();
        return;
      case 5:  // all later columns become copies of this one with one weight changed: near ties
        return MakeNearTies(column, bytes.Take<uint16_t>());
      case 6:
        return ReverseOrder(row, column, bytes.Take<uint8_t>());
      default:  // a weight
        Block(column * blocks_ + input / kQ8Block)[2 + input % kQ8Block] = bytes.Take<uint8_t>();
    }
  }

  void ScaleRow(int64_t row, int exponent) {
    for (int64_t i = 0; i < d(); ++i) {
      float& x = x_[static_cast<size_t>(row * d() + i)];
      x = std::ldexp(x, exponent);
    }
  }

  void MakeNearTies(int64_t column, uint64_t seed) {
    riffle::test::Rng rng(seed);
    const int64_t bytes = blocks_ * kQ8BlockBytes;
    for (int64_t other = column + 1; other < vocab_; ++other) {
      std::memcpy(Block(other * blocks_), Block(column * blocks_), static_cast<size_t>(bytes));
      uint8_t& weight = Block(other * blocks_ + rng.Below(blocks_))[2 + rng.Below(kQ8Block)];
      weight = static_cast<uint8_t>(weight + rng.Below(3) - 1);
    }
  }

  // Makes `column` and the next one the best of a row, in an order that rounding x reverses.
  // `column` has weights in even blocks alone, the next one in odd blocks alone. Rounded inputs are
  // 10, and 11 for `raised` inputs of even blocks, so the prefilter sees `column` ahead; but exact
  // inputs are half a step smaller in even blocks and larger in odd ones, which can put the next
  // one ahead. A bound of 0.7 of the proven width would then drop the best column.
  void ReverseOrder(int64_t row, int64_t column, int raised) {
    const int64_t next = (column + 1) % vocab_;
    const float max_q =
        rows_ <= 3 ? 127 * 128 : 127;  // the first input of a block makes its step 1
    for (int64_t block = 0; block < blocks_; ++block) {
      const bool paired = block < blocks_ / 2 * 2;
      for (const int64_t of : {column, next}) {
        SetScale(of * blocks_ + block, 0x2a00);  // above all that the constructor makes
        const bool used = paired && (block % 2 == 0) == (of == column);
        std::memset(Block(of * blocks_ + block) + 2, used ? 127 : 0, kQ8Block);
        Block(of * blocks_ + block)[2] = 0;
      }
      float* x = x_.data() + row * d() + block * kQ8Block;
      x[0] = max_q;
      for (int i = 1; i < kQ8Block; ++i) {
        const bool even = block % 2 == 0;
        const float rounded = even && raised-- > 0 ? 11 : 10;
        x[i] = paired ? rounded + (even ? -0.499f : 0.499f) : 0;
      }
    }
  }

  int64_t rows_, blocks_, vocab_, k_;
  int threads_;
  LinearOptions options_;
  std::vector<float> x_, bias_;
  std::vector<uint8_t> w_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes bytes(data, size);
  Case(bytes).Run();
  return 0;
}
