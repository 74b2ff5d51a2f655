// The nodes of a graph that Riffle computes.
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

// The node's operation. None for a node of another kind, and for one that ggml's own kernel has to
// do. The log says which nodes Riffle takes, and why it leaves others.
std::optional<Operation> ReadOperation(const Host& host, const ggml::Tensor& node);

// Runs operations; keeps plans that they share, and scratch memory, from one to the next.
class OperationRunner {
 public:
  // To be called before each run of a graph, whose masks have changed.
  void Clear() { plans_.Clear(); }

  // Returns a status of ggml; a failure goes to the log. Pre: what the node reads is computed.
  int Run(const Operation& operation) noexcept;

 private:
  PlanCache plans_;
  std::vector<int32_t> begins_;
  std::vector<int32_t> ends_;
};

}  // namespace riffle::llama
