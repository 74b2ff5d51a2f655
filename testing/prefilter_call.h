// A call of LinearTopK whose data a test can change, and the comparison of its answer with TopK's.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "core/lease.h"
#include "lm_head/choose_topk.h"
#include "riffle/topk.h"
#include "testing/distributions.h"
#include "testing/linear_case.h"
#include "testing/text.h"
#include "testing/topk_check.h"

namespace riffle::test {

inline constexpr float kInf = std::numeric_limits<float>::infinity();
inline constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// A call on x f32 [rows, d] and W Q8_0 [vocab, d], both random until a test changes them.
struct PrefilterCall {
  int64_t rows, d, vocab;
  std::vector<float> x;
  std::vector<uint8_t> w;
  std::vector<float> bias;

  PrefilterCall(int64_t rows_, int64_t d_, int64_t vocab_, uint64_t seed = 1)
      : rows(rows_), d(d_), vocab(vocab_) {
    Rng rng(seed);
    for (int64_t i = 0; i < rows * d; ++i) x.push_back(Normal(rng));
    w.resize(static_cast<size_t>(vocab * d / 32 * 34));
    for (int64_t block = 0; block < vocab * d / 32; ++block) {
      SetScale(block, 0.01f + 0.01f * static_cast<float>(rng.Unit()));
      for (int i = 0; i < 32; ++i) {
        Q(block, i) = static_cast<int8_t>(std::lround(std::clamp(Normal(rng) * 45, -128.f, 127.f)));
      }
    }
  }
  static float Normal(Rng& rng) {
    return static_cast<float>(std::sqrt(-2 * std::log(1 - rng.Unit())) *
                              std::cos(6.283185307179586 * rng.Unit()));
  }
  void SetScale(int64_t block, float scale) {
    Store(DType::kF16, Encode(DType::kF16, scale), w.data() + block * 34);
  }
  int8_t& Q(int64_t block, int i) {
    return reinterpret_cast<int8_t&>(w[static_cast<size_t>(block * 34 + 2 + i)]);
  }

  // The same call for rows [begin, begin + count) alone.
  PrefilterCall Rows(int64_t begin, int64_t count) const {
    PrefilterCall part = *this;
    part.rows = count;
    part.x = {x.begin() + begin * d, x.begin() + (begin + count) * d};
    return part;
  }

  MatrixView X() const { return {x.data(), DType::kF32, rows, d, d}; }
  WeightView W() const { return {w.data(), WeightFormat::kQ8_0, vocab, d, d / 32, 1}; }
  LinearOptions Options(int threads) const {
    LinearOptions options;
    if (!bias.empty()) options.bias = {bias.data(), DType::kF32, vocab};
    options.pool = &PoolOf(threads);
    return options;
  }
};

// Empty if the prefiltered answer equals that of TopK over the logits.
inline std::string Compare(const MatrixView& x, const WeightView& weight,
                           const LinearOptions& options, const std::vector<float>& y, int64_t k,
                           lm_head::PrefilterStats* stats,
                           lm_head::PrefilterMode mode = lm_head::PrefilterMode::kAlways) {
  const auto size = static_cast<size_t>(x.rows * k);
  std::vector<float> values(size), expected(size);
  std::vector<int64_t> indices(size);
  std::vector<int32_t> columns(size);
  TopK({y.data(), DType::kF32, x.rows, weight.rows, weight.rows}, k,
       {expected.data(), k, columns.data(), k});
  lm_head::LinearTopKWith(mode, x, weight, k,
                          {values.data(), k, indices.data(), k, IndexType::kInt64}, options, stats);
  for (size_t i = 0; i < size; ++i) {
    if (indices[i] != columns[i] || std::memcmp(&values[i], &expected[i], sizeof(float)) != 0) {
      return Concat("row ", i / static_cast<size_t>(k), ", place ", i % static_cast<size_t>(k),
                    ": ", values[i], " of ", indices[i], ", not ", expected[i], " of ", columns[i],
                    "; k=", k, " vocab=", weight.rows, " on ", Target());
    }
  }
  return "";
}

}  // namespace riffle::test
