// What `riffle bench attention` measures, and how one case of it is run.
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
  int group = 4;  // query heads of a KV head
  int head_dim = 128;
  int page_size = 16;
  DType q_dtype = DType::kBF16;
  DType dtype = DType::kBF16;  // of keys and values
  KvFormat format = KvFormat::kPlain;
  bool row_scales = false;  // an f32 for each row of 8-bit elements
  int value_dim = 0;        // > 0: values are the first elements of their keys, as in MLA

  bool decode() const;  // one query a sequence
  int values_dim() const { return value_dim > 0 ? value_dim : head_dim; }
  double bytes() const;       // of keys and values, without scales that are apart
  double operations() const;  // multiplications and additions; the causal half counted once
};

// `quick` leaves out what needs more than 100 MB.
std::vector<AttentionCase> AttentionCases(bool quick);

// Makes the data, holds a sample of the answers against a reference in double, then measures.
// Throws std::runtime_error when an answer is wrong: what is wrong is not timed.
RooflineLine RunAttentionCase(const AttentionCase& what, double min_seconds, ThreadPool* pool);

}  // namespace riffle::cli
