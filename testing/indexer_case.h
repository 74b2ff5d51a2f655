// A random batch for the indexer, in memory that faults behind its end, and its scores in double.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "riffle/indexer.h"
#include "testing/buffers.h"
#include "testing/rng.h"

namespace riffle::test {

struct IndexerSpec {
  DType q_dtype = DType::kF32;
  DType key_dtype = DType::kF32;
  IndexKeyFormat format = IndexKeyFormat::kPlain;
  int heads = 4;
  int head_dim = 64;
  int page_size = 16;
  int64_t ratio = 1;
  IndexActivation activation = IndexActivation::kRelu;
  bool weights = true;
  bool scales = true;  // also for keys that need none
  std::vector<int> q_lens = {1};
  std::vector<int> kv_lens = {100};
  // q and keys are small integers, weights and scales powers of two: scores are exact, and many of
  // them are equal.
  bool ties = false;
  bool specials = false;  // some rows with NaN, infinities, and codes of every kind
  uint64_t seed = 0;
};

std::string Describe(const IndexerSpec& spec);

class IndexerCase {
 public:
  explicit IndexerCase(const IndexerSpec& spec);

  const IndexerSpec& spec() const { return spec_; }
  int64_t tokens() const { return tokens_; }
  int64_t cols() const { return MaxIndexKeys(batch(), spec_.ratio); }
  HeadsView q() const;
  IndexWeights weights() const { return {spec_.weights ? weights_.data() : nullptr, spec_.heads}; }
  IndexKeys keys() const;
  PagedBatch batch() const;
  IndexerOptions options(ThreadPool* pool = nullptr) const {
    return {spec_.activation, spec_.ratio, pool};
  }

  int64_t Sequence(int64_t token) const { return sequence_[static_cast<size_t>(token)]; }
  int64_t Visible(int64_t token) const;  // number of keys that it sees

  // The score of a key that the query sees, from exact values in double; *bound is how far an f32
  // evaluation may be from it.
  double Score(int64_t token, int64_t key, double* bound) const;
  // For int8 keys and q: the exact bits that the library promises.
  float ExactScore(int64_t token, int64_t key) const;
  int32_t Slot(int64_t sequence, int64_t position) const;

  // Scores [tokens, cols] of one call.
  std::vector<float> Logits(ThreadPool* pool = nullptr) const;

 private:
  double Value(Rng& rng) const;
  void MakePages(Rng& rng);
  void MakeQueries(Rng& rng);
  void MakeKeys(Rng& rng);

  const float* Q(int64_t token, int head) const {
    return q_.data() + (token * spec_.heads + head) * spec_.head_dim;
  }
  float WeightOf(int64_t token, int head) const {
    return spec_.weights ? weights_[static_cast<size_t>(token * spec_.heads + head)] : 1.0f;
  }

  IndexerSpec spec_;
  int64_t tokens_ = 0;
  int64_t pages_ = 0;
  int64_t max_pages_ = 0;
  std::vector<int32_t> cu_q_lens_, kv_lens_, table_, sequence_;
  std::vector<float> weights_, scales_;  // scales by slot
  std::vector<float> q_, k_;             // exact values; keys by slot
  std::unique_ptr<GuardedBuffer> q_bytes_, key_bytes_;
};

}  // namespace riffle::test
