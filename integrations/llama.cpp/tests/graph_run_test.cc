// Graphs in a fake ggml, whose threads all visit every node as ggml's do: random nodes, checked
// against sums in double. Under sanitizers it shows what an unmodified llama.cpp cannot: accesses
// outside of tensors, and races of the threads that are lent.
#include "graph_run.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <barrier>
#include <bit>
#include <cmath>
#include <cstring>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "node_case.h"

namespace riffle::llama {
namespace {

using ggml::Tensor;
using riffle::test::Rng;
using test::Case;

enum Type { kTypeF32, kTypeF16 };
enum Op { kOpOther, kOpAttention, kOpTopK, kOpCustom };

struct FakeGraph {
  std::vector<Tensor*> nodes;
  int threads = 1;
  int others = 0;  // nodes that were not given to this file
};

FakeGraph& Fake(ggml::Graph* graph) { return *reinterpret_cast<FakeGraph*>(graph); }

Host FakeHost() {
  Host host;
  host.graph_nodes = [](ggml::Graph* graph) { return static_cast<int>(Fake(graph).nodes.size()); };
  host.graph_node = [](ggml::Graph* graph, int i) {
    return Fake(graph).nodes[static_cast<size_t>(i)];
  };
  host.type_name = [](int type) { return type == kTypeF32 ? "f32" : "f16"; };
  host.flash_attention = kOpAttention;
  host.top_k = kOpTopK;
  host.custom = kOpCustom;
  return host;
}

// Does what ggml's backend does: all threads run every node, with a barrier after each.
int Compute(ggml::Backend*, ggml::Graph* of) {
  FakeGraph& graph = Fake(of);
  std::barrier meet(graph.threads);
  const auto thread = [&](int number) {
    for (Tensor* node : graph.nodes) {
      ggml::CustomParams params;
      std::memcpy(&params, node->op_params, sizeof(params));
      if (node->op == kOpCustom) {
        params.function(node, number, graph.threads, params.data);
      } else if (number == 0) {
        ++graph.others;
      }
      meet.arrive_and_wait();
    }
  };
  std::vector<std::thread> helpers;
  for (int i = 1; i < graph.threads; ++i) {
    helpers.emplace_back(thread, i);
  }
  thread(0);
  for (std::thread& helper : helpers) {
    helper.join();
  }
  return ggml::kStatusSuccess;
}

// Numbers as bits of f16, exactly: multiples of 1/64 below 4.
uint16_t Half(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  return x == 0.0f
             ? uint16_t{0}
             : static_cast<uint16_t>((bits >> 16 & 0x8000) | (((bits >> 23 & 0xff) - 112) << 10) |
                                     (bits >> 13 & 0x3ff));
}

// Memory of exactly the elements of a tensor, with strides in the order of the extents.
class Owned {
 public:
  Owned(Type type, int64_t n0, int64_t n1, int64_t n2, int64_t n3) {
    tensor_.type = type;
    const int64_t extents[] = {n0, n1, n2, n3};
    size_t bytes = type == kTypeF32 ? 4 : 2;
    for (int i = 0; i < 4; ++i) {
      tensor_.ne[i] = extents[i];
      tensor_.nb[i] = bytes;
      bytes *= static_cast<size_t>(extents[i]);
    }
    memory_ = std::make_unique<unsigned char[]>(bytes);
    tensor_.data = memory_.get();
  }
  Tensor& operator*() { return tensor_; }
  Tensor* operator->() { return &tensor_; }
  template <typename T>
  T* data() {
    return static_cast<T*>(tensor_.data);
  }
  // Axes a and b in each other's place.
  void Swap(int a, int b) {
    std::swap(tensor_.ne[a], tensor_.ne[b]);
    std::swap(tensor_.nb[a], tensor_.nb[b]);
  }

 private:
  Tensor tensor_ = {};
  std::unique_ptr<unsigned char[]> memory_;
};

std::vector<float> Fill(Owned& tensor, int64_t count, Rng& rng) {
  std::vector<float> numbers(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    const float x = static_cast<float>(rng.Between(-255, 255)) / 64;
    numbers[static_cast<size_t>(i)] = x;
    if (tensor->type == kTypeF32) {
      tensor.data<float>()[i] = x;
    } else {
      tensor.data<uint16_t>()[i] = Half(x);
    }
  }
  return numbers;
}

Case SmallCase(Rng& rng) {
  Case c = test::RandomCase(rng);
  c.key_type = c.value_type = rng.OneIn(3) ? "f32" : "f16";
  c.values_in_keys = false;
  c.key_dim = rng.OneIn(2) ? 64 : 8 * rng.Between(1, 10);
  c.value_dim = rng.OneIn(3) ? 32 : c.key_dim;
  c.tokens = std::min<int64_t>(c.tokens, 20);
  c.streams = std::min<int64_t>(c.streams, 3);
  c.cells = std::min<int64_t>(c.cells, 300);
  c.kv_size = c.cells;
  c.max_bias = 0.0f;
  return c;
}

TEST(GraphRun, AttentionAsInDouble) {
  Rng rng(1);
  const Host host = FakeHost();
  GraphRun run;
  for (int i = 0; i < 60; ++i) {
    const Case c = SmallCase(rng);
    const int64_t heads = c.kv_heads * c.group;
    const Type type = c.key_type == "f32" ? kTypeF32 : kTypeF16;
    Owned q(kTypeF32, c.key_dim, heads, c.tokens, c.streams);
    Owned k(type, c.key_dim, c.kv_heads, c.cells, c.streams);
    Owned v(type, c.value_dim, c.kv_heads, c.cells, c.streams);
    Owned mask(kTypeF16, c.cells, c.tokens, 1, c.streams);
    Owned sinks(kTypeF32, heads, 1, 1, 1);
    Owned out(kTypeF32, c.value_dim, heads, c.tokens, c.streams);
    const auto q_numbers = Fill(q, c.key_dim * heads * c.tokens * c.streams, rng);
    const auto k_numbers = Fill(k, c.key_dim * c.kv_heads * c.cells * c.streams, rng);
    const auto v_numbers = Fill(v, c.value_dim * c.kv_heads * c.cells * c.streams, rng);
    const auto sink_numbers = Fill(sinks, heads, rng);
    const std::vector<uint16_t> mask_bits = test::RandomMask(c, rng);
    std::copy(mask_bits.begin(), mask_bits.end(), mask.data<uint16_t>());
    for (Owned* tensor : {&q, &k, &v}) {
      tensor->Swap(1, 2);
    }
    const float params[3] = {0.25f, 0.0f, c.soft_cap};
    out->op = kOpAttention;
    out->flags = ggml::kFlagCompute;
    std::memcpy(out->op_params, params, sizeof(params));
    Tensor* const sources[] = {&*q, &*k, &*v, c.mask == test::MaskKind::kNone ? nullptr : &*mask,
                               c.sinks ? &*sinks : nullptr};
    std::copy(std::begin(sources), std::end(sources), out->src);
    Tensor other = {};
    const Tensor before = *out;
    FakeGraph graph{{&other, &*out, &other, &*out}, c.threads};
    ASSERT_EQ(run.Run(host, Compute, nullptr, reinterpret_cast<ggml::Graph*>(&graph)),
              ggml::kStatusSuccess);
    ASSERT_EQ(graph.others, 2);
    ASSERT_EQ(std::memcmp(&before, &*out, sizeof(Tensor)), 0) << "the graph is as it was";
    test::Numbers numbers;
    numbers.q = q_numbers.data();
    numbers.keys = k_numbers.data();
    numbers.values = v_numbers.data();
    numbers.sinks = c.sinks ? sink_numbers.data() : nullptr;
    numbers.scale = params[0];
    ASSERT_LT(test::Error(out.data<float>(), test::Exact(c, numbers, mask_bits)), 1e-10)
        << test::Describe(c);
  }
}

TEST(GraphRun, TopK) {
  Rng rng(2);
  const Host host = FakeHost();
  GraphRun run;
  for (int i = 0; i < 40; ++i) {
    const int64_t columns = rng.Between(1, 700);
    const int64_t k = rng.Between(1, columns);
    Owned x(kTypeF32, columns, 3, 2, 1);
    Owned out(kTypeF32, k, 3, 2, 1);  // int32 is as large
    const std::vector<float> numbers = Fill(x, columns * 6, rng);
    out->op = kOpTopK;
    out->flags = ggml::kFlagCompute;
    out->src[0] = &*x;
    FakeGraph graph{{&*out}, 2};
    ASSERT_EQ(run.Run(host, Compute, nullptr, reinterpret_cast<ggml::Graph*>(&graph)),
              ggml::kStatusSuccess);
    for (int64_t row = 0; row < 6; ++row) {
      std::vector<float> all(numbers.begin() + row * columns,
                             numbers.begin() + (row + 1) * columns);
      std::vector<float> got;
      for (int64_t j = 0; j < k; ++j) {
        got.push_back(all.at(static_cast<size_t>(out.data<int32_t>()[row * k + j])));
      }
      std::sort(all.begin(), all.end(), std::greater<>());
      std::sort(got.begin(), got.end(), std::greater<>());
      ASSERT_TRUE(std::equal(got.begin(), got.end(), all.begin()));
    }
  }
}

TEST(GraphRun, LeavesWhatItCannotCompute) {
  const Host host = FakeHost();
  GraphRun run;
  Owned q(kTypeF32, 64, 1, 2, 1);
  Owned k(kTypeF16, 64, 16, 1, 1);
  Owned out(kTypeF32, 64, 2, 1, 1);
  const float params[3] = {1.0f, 8.0f, 0.0f};  // ALiBi
  std::memcpy(out->op_params, params, sizeof(params));
  out->op = kOpAttention;
  out->flags = ggml::kFlagCompute;
  Tensor* const sources[] = {&*q, &*k, &*k};
  std::copy(std::begin(sources), std::end(sources), out->src);
  FakeGraph graph{{&*out}, 2};
  run.Run(host, Compute, nullptr, reinterpret_cast<ggml::Graph*>(&graph));
  EXPECT_EQ(graph.others, 1);
}

TEST(GraphRun, AFailureIsAStatus) {
  const Host host = FakeHost();
  GraphRun run;
  Owned q(kTypeF32, 64, 1, 2, 1);
  Owned k(kTypeF16, 64, 16, 1, 1);
  Owned out(kTypeF32, 64, 2, 1, 1);
  const float params[3] = {NAN, 0.0f, 0.0f};
  std::memcpy(out->op_params, params, sizeof(params));
  out->op = kOpAttention;
  out->flags = ggml::kFlagCompute;
  Tensor* const sources[] = {&*q, &*k, &*k};
  std::copy(std::begin(sources), std::end(sources), out->src);
  FakeGraph graph{{&*out}, 2};
  EXPECT_EQ(run.Run(host, Compute, nullptr, reinterpret_cast<ggml::Graph*>(&graph)),
            ggml::kStatusFailed);
  EXPECT_EQ(out->op, kOpAttention);
}

}  // namespace
}  // namespace riffle::llama
