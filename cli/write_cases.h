// The cases that `riffle bench write` measures, and how to run one.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/roofline.h"
#include "riffle/write_kv.h"

namespace riffle::cli {

struct WriteCase {
  std::string name;
  int64_t tokens = 2048;
  DType from = DType::kBF16;
  DType dtype = DType::kBF16;
  KvFormat format = KvFormat::kPlain;
  int64_t kv_heads = 8;
  int64_t head_dim = 128;
};

std::vector<WriteCase> WriteCases();

// Makes tokens and pages, checks what a call wrote against its input, then measures the call beside
// a copy of the tokens' bytes. Throws std::runtime_error if an answer is wrong.
RooflineLine RunWriteCase(const WriteCase& what, double min_seconds, ThreadPool* pool);

}  // namespace riffle::cli
