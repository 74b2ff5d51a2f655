// A TOP_K node as a call of TopKPerRow: the columns of the k largest of each row, in any order.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "ggml_abi.h"
#include "ggml_host.h"
#include "riffle/topk.h"

namespace riffle::llama {

struct TopKNode {
  MatrixView x;
  int64_t k = 0;
  OutView<int32_t> columns;  // [rows, k]
};

// The node's operation; none, and why in `reason`, where ggml's own kernel has to do it.
std::optional<TopKNode> ReadTopK(const Host& host, const ggml::Tensor& node, std::string& reason);

// The ranges of rows, which are whole, are kept in `begins` and `ends`.
void Run(const TopKNode& node, std::vector<int32_t>& begins, std::vector<int32_t>& ends);

}  // namespace riffle::llama
