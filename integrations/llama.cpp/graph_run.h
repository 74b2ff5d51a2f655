// Runs a graph on the neighbour's backend. While it runs, the nodes that Riffle computes are custom
// operations, which all of ggml's threads call: they become the threads of Riffle's call. No other
// thread takes part.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "ggml_abi.h"
#include "ggml_host.h"
#include "operation.h"

namespace riffle::llama {

// The threads of one graph's run: thread 0 makes Riffle's calls, and the others help it.
//
// A call is open while gate_ has kOpen; a helper enters an open call by adding one, and leaves by
// subtracting it. The caller closes it when its own part is done and waits for those inside, never
// for a helper that the system has not run yet.
class GraphThreads {
 public:
  // To be called before the threads of a run come.
  void Reset() { nodes_done_.store(0, std::memory_order_relaxed); }

  // Thread 0, inside of node `node`: calls body(data) here and on helpers that wait for the end of
  // the node, up to max_threads in all, once on each. Returns when all have returned.
  void Run(void (*body)(void*), void* data, unsigned max_threads);

  // Thread 0: lets the helpers of node `node` go.
  void End(int node) { nodes_done_.store(node + 1, std::memory_order_release); }

  // Other threads: helps until the end of the node.
  void Help(int node, int thread);

 private:
  static constexpr uint64_t kOpen = uint64_t{1} << 31;
  static constexpr uint64_t kCall = uint64_t{1} << 32;  // calls are counted from here on

  void (*body_)(void*) = nullptr;
  void* data_ = nullptr;
  unsigned max_threads_ = 0;
  alignas(64) std::atomic<uint64_t> gate_{0};
  alignas(64) std::atomic<int> nodes_done_{0};
};

class GraphRun {
 public:
  using Compute = int (*)(ggml::Backend*, ggml::Graph*);

  // Runs the graph by `compute`; returns a status of ggml. Leaves the graph as it was before.
  int Run(const Host& host, Compute compute, ggml::Backend* backend, ggml::Graph* graph);

 private:
  struct Node {
    GraphRun* run = nullptr;
    int index = 0;
    ggml::Tensor* tensor = nullptr;
    int32_t op = 0;
    int32_t op_params[16] = {};
    Operation operation;
  };

  static void RunNode(ggml::Tensor* result, int thread, int threads, void* node);
  void TakeNodes(const Host& host, ggml::Graph* graph);
  void GiveBackNodes();
  void RunOnThreads(const Node& node, int threads);

  std::vector<Node> nodes_;
  OperationRunner runner_;
  GraphThreads threads_;
  int status_ = ggml::kStatusSuccess;
};

}  // namespace riffle::llama
