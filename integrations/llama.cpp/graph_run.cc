#include "graph_run.h"

#include <cstring>
#include <new>
#include <thread>

#include "growing_pool.h"
#include "riffle/riffle.h"

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace riffle::llama {
namespace {

void Pause() {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("yield");
#endif
}

// The group of ggml threads that this thread leads while it makes a call.
constinit thread_local GraphThreads* calling_threads = nullptr;

// A ParallelRegion. On a thread that leads no group, body runs there alone.
void RunOnGraphThreads(void (*body)(void*), void* data, unsigned threads, unsigned) {
  if (calling_threads == nullptr) {
    body(data);
  } else {
    calling_threads->Run(body, data, threads);
  }
}

constinit GrowingPool default_pool([] { SetParallelRegion(RunOnGraphThreads); });

}  // namespace

void GraphThreads::Run(void (*body)(void*), void* data, unsigned max_threads) {
  body_ = body;
  data_ = data;
  max_threads_ = max_threads;
  const uint64_t call = (gate_.load(std::memory_order_relaxed) & ~(kCall - 1)) + kCall;
  gate_.store(call | kOpen, std::memory_order_release);
  body(data);
  gate_.fetch_and(~kOpen, std::memory_order_acq_rel);
  while ((gate_.load(std::memory_order_acquire) & (kOpen - 1)) != 0) {
    Pause();
  }
}

void GraphThreads::Help(int node, int thread) {
  // Spins, as ggml's threads do between nodes, because the next node is microseconds away; yields
  // after kSpins, in case there are more threads than CPUs.
  constexpr int kSpins = 4096;
  uint64_t helped = 0;
  for (int spins = 0; nodes_done_.load(std::memory_order_acquire) <= node;) {
    uint64_t gate = gate_.load(std::memory_order_relaxed);
    const uint64_t call = gate & ~(kCall - 1);
    bool inside = false;
    while (call != helped && (gate & kOpen) != 0 && (gate & ~(kCall - 1)) == call && !inside) {
      inside = gate_.compare_exchange_weak(gate, gate + 1, std::memory_order_acquire);
    }
    if (inside) {
      if (static_cast<unsigned>(thread) < max_threads_) {
        body_(data_);
      }
      helped = call;
      gate_.fetch_sub(1, std::memory_order_acq_rel);
      spins = 0;
    } else if (++spins < kSpins) {
      Pause();
    } else {
      std::this_thread::yield();
    }
  }
}

int GraphRun::Run(const Host& host, Compute compute, ggml::Backend* backend, ggml::Graph* graph) {
  try {
    TakeNodes(host, graph);
  } catch (const std::bad_alloc&) {
    GiveBackNodes();  // ggml does all of them
  }
  const int status = compute(backend, graph);
  GiveBackNodes();
  return status == ggml::kStatusSuccess ? status_ : status;
}

void GraphRun::TakeNodes(const Host& host, ggml::Graph* graph) {
  nodes_.clear();
  runner_.Clear();
  threads_.Reset();
  status_ = ggml::kStatusSuccess;
  const int count = host.graph_nodes(graph);
  for (int i = 0; i < count; ++i) {
    ggml::Tensor* tensor = host.graph_node(graph, i);
    const std::optional<Operation> operation =
        (tensor->flags & ggml::kFlagCompute) != 0 ? ReadOperation(host, *tensor) : std::nullopt;
    if (operation) {
      Node node;
      node.run = this;
      node.index = static_cast<int>(nodes_.size());
      node.tensor = tensor;
      node.op = tensor->op;
      node.operation = *operation;
      std::memcpy(node.op_params, tensor->op_params, sizeof(node.op_params));
      nodes_.push_back(node);
    }
  }
  for (Node& node : nodes_) {  // nodes_ grows no more, so addresses of nodes stay valid
    const ggml::CustomParams params = {RunNode, ggml::kAllThreads, &node};
    std::memcpy(node.tensor->op_params, &params, sizeof(params));
    node.tensor->op = host.custom;
  }
}

void GraphRun::GiveBackNodes() {
  for (const Node& node : nodes_) {
    node.tensor->op = node.op;
    std::memcpy(node.tensor->op_params, node.op_params, sizeof(node.op_params));
  }
  nodes_.clear();
}

// On each of ggml's threads; it has them meet before and after.
void GraphRun::RunNode(ggml::Tensor*, int thread, int threads, void* data) {
  const Node& node = *static_cast<const Node*>(data);
  GraphRun& run = *node.run;
  if (thread == 0) {
    run.RunOnThreads(node, threads);
    run.threads_.End(node.index);
  } else {
    run.threads_.Help(node.index, thread);
  }
}

void GraphRun::RunOnThreads(const Node& node, int threads) {
  try {
    default_pool.Reserve(threads);
  } catch (...) {  // the call runs on fewer
  }
  calling_threads = &threads_;
  const int status = runner_.Run(node.operation);
  calling_threads = nullptr;
  if (status != ggml::kStatusSuccess) {
    status_ = status;
  }
}

}  // namespace riffle::llama
