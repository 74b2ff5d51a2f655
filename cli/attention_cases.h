// The cases that `riffle bench attention` measures, and how to run one.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/roofline.h"
#include "riffle/riffle.h"

namespace riffle::cli {

struct AttentionCase {
  std::string name;
  std::vector<int32_t> q_lens;
  std::vector<int32_t> kv_lens;
  int kv_heads = 8;
  int group = 4;  // query heads per KV head
  int head_dim = 128;
  int page_size = 16;
  DType q_dtype = DType::kBF16;
  DType dtype = DType::kBF16;  // of keys and values
  KvFormat format = KvFormat::kPlain;
  bool row_scales = false;      // an f32 for each row of 8-bit elements
  int value_dim = 0;            // 0: head_dim
  bool values_in_keys = false;  // values are the first value_dim elements of their keys, as in MLA
  // > 0: attention is causal within blocks of so many keys, by a mask of bools, not by an option.
  int mask_block = 0;

  bool decode() const;  // whether there is one query per sequence
  // The first key that a query at `position` sees; the last one is its own.
  int first_key(int position) const {
    return mask_block > 0 ? position / mask_block * mask_block : 0;
  }
  int values_dim() const { return value_dim > 0 ? value_dim : head_dim; }
  double bytes() const;       // of keys and values, without separate scales
  double operations() const;  // multiplications and additions; if causal, of the causal half only
};

// `quick` leaves out the cases that take more than 100 MB.
std::vector<AttentionCase> AttentionCases(bool quick);

// Makes the data, checks a sample of the answers against a reference in double, then measures.
// Throws std::runtime_error if an answer is wrong: wrong results are not timed.
RooflineLine RunAttentionCase(const AttentionCase& what, double min_seconds, ThreadPool* pool);

}  // namespace riffle::cli
