// What Riffle computes of a graph.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "attention_node.h"
#include "ggml_abi.h"
#include "ggml_host.h"
#include "top_k_node.h"

namespace riffle::llama {

using Operation = std::variant<AttentionNode, TopKNode>;

// None: a node of another kind, or one that ggml's own kernel has to do. The latter's reason, like
// what Riffle takes, goes to the log.
std::optional<Operation> ReadOperation(const Host& host, const ggml::Tensor& node);

// Runs operations, and keeps between them what they share and the memory they need.
class OperationRunner {
 public:
  // Before a run of a graph: masks have changed.
  void Clear() { plans_.Clear(); }

  // Returns a status of ggml; a failure goes to the log. Memory that nodes read has been computed.
  int Run(const Operation& operation) noexcept;

 private:
  PlanCache plans_;
  std::vector<int32_t> begins_;
  std::vector<int32_t> ends_;
};

}  // namespace riffle::llama
