// The LM head: the logits of hidden states, or the k best of them.
#pragma once

#include <cstdint>
#include <variant>
#include <vector>

#include "engine/gguf/gguf.h"
#include "engine/quant/matrix.h"
#include "riffle/linear_topk.h"
#include "riffle/runtime.h"
#include "riffle/types.h"

namespace riffle::engine {

// Memory that calls reuse; it grows to the largest shapes.
struct LmHeadScratch {
  Activations rounded;
  std::vector<float> logits;
};

// Weights in a format of riffle::LinearTopK stay in the file's mapping and are multiplied by that,
// with hidden states in f32. Weights in other block formats are repacked, and hidden states rounded
// to 16 bits, as for the engine's other products.
class LmHead {
 public:
  // How many rows' logits callers store at a time: 0.5 to 1 MB each.
  static constexpr int64_t kStoredRows = 16;

  LmHead() = default;
  // Pre: `tensor` is [vocab, hidden] and belongs to `file`. Throws Error(kOutOfMemory).
  LmHead(const GgufFile& file, const Tensor& tensor, ThreadPool* pool);

  // The k best of each row's logits, best first; hidden [rows, hidden], values and tokens [rows,
  // k]. Throws Error. A row's results depend on nothing else in the call.
  void TopK(const float* hidden, int64_t rows, int64_t k, float* values, int32_t* tokens,
            LmHeadScratch& scratch, ThreadPool* pool) const;
  // All logits [rows, vocab], in the scratch.
  MatrixView Logits(const float* hidden, int64_t rows, LmHeadScratch& scratch,
                    ThreadPool* pool) const;

  int64_t bytes() const;  // what a call reads

 private:
  int64_t vocab_ = 0;
  int64_t hidden_ = 0;
  std::variant<WeightView, Matrix> weights_;
};

}  // namespace riffle::engine
