// Bad arguments of PagedAttention: an Error with the right code whose text names the argument, its
// value and the limit; and not one byte written.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "riffle/attention.h"
#include "riffle/error.h"
#include "testing/error_check.h"

namespace riffle::test {
namespace {

constexpr int64_t kHuge = std::numeric_limits<int64_t>::max();

// A right call for a test to spoil: 2 sequences, 3 queries, 4 query heads on 2, head_dim 32, pages
// of 8 tokens.
struct Arguments {
  std::vector<int32_t> cu_q_lens = {0, 1, 3};
  std::vector<int32_t> kv_lens = {10, 17};
  std::vector<int32_t> table = {4, 0, -1, 3, 2, 1};
  std::vector<float> sinks;
  HeadsView q;
  PagedKv keys, values;
  PagedBatch batch;
  AttentionOut out;
  AttentionOptions options;

  void Run() {
    batch.cu_q_lens = cu_q_lens;
    batch.kv_lens = kv_lens;
    options.sinks = sinks;
    PagedAttention(q, keys, values, batch, out, options);
  }
};

class AttentionErrors : public testing::Test {
 protected:
  // One block of memory holds everything that may overlap.
  AttentionErrors() : memory_(1 << 18) {}

  uint8_t* At(int64_t byte) { return memory_.data() + byte; }

  Arguments Right() {
    Arguments right;
    right.q = {At(0), DType::kF32, 3, 4, 32, 128, 32};
    right.keys = {At(16384), DType::kF32, 5, 8, 2, 32, 512, 32, 256};
    right.values = {At(65536), DType::kF32, 5, 8, 2, 32, 512, 32, 256};
    right.out = {At(131072), 128, 32, reinterpret_cast<float*>(At(196608)), 4};
    return right;
  }

  void Expect(Code code, const std::vector<std::string>& words,
              const std::function<void(Arguments&)>& spoil) {
    Arguments arguments = Right();
    arguments.batch.page_table = arguments.table.data();
    arguments.batch.max_pages = 3;
    arguments.batch.page_table_stride = 3;
    spoil(arguments);
    const std::vector<uint8_t> before = memory_;
    ExpectError(code, words, [&] { arguments.Run(); });
    EXPECT_TRUE(memory_ == before) << "wrote something";
  }

  std::vector<uint8_t> memory_;
};

TEST_F(AttentionErrors, TheRightCallIsRight) {
  Arguments right = Right();
  right.batch = {{}, {}, right.table.data(), 3, 3};
  EXPECT_NO_THROW(right.Run());
}

TEST_F(AttentionErrors, Shapes) {
  Expect(Code::kBadShape, {"q.head_dim", "4", "8"}, [](auto& a) { a.q.head_dim = 4; });
  Expect(Code::kBadShape, {"q.head_dim", "36"}, [](auto& a) { a.q.head_dim = 36; });
  Expect(Code::kBadShape, {"q.head_dim", "1032", "1024"}, [](auto& a) { a.q.head_dim = 1032; });
  Expect(Code::kBadShape, {"q.head_dim", "40", "keys.head_dim", "32"},
         [](auto& a) { a.q.head_dim = 40; });
  Expect(Code::kBadShape, {"q.heads", "5", "2"}, [](auto& a) { a.q.heads = 5; });
  Expect(Code::kBadShape, {"q.heads", "0"}, [](auto& a) { a.q.heads = 0; });
  Expect(Code::kBadShape, {"q.tokens", "-1"}, [](auto& a) { a.q.tokens = -1; });
  Expect(Code::kBadShape, {"q.data", "null"}, [](auto& a) { a.q.data = nullptr; });
  Expect(Code::kBadShape, {"keys.data", "null"}, [](auto& a) { a.keys.data = nullptr; });
  Expect(Code::kBadShape, {"keys.page_size", "0"}, [](auto& a) { a.keys.page_size = 0; });
  Expect(Code::kBadShape, {"keys.kv_heads", "0"}, [](auto& a) { a.keys.kv_heads = 0; });
  Expect(Code::kBadShape, {"keys.num_pages", "-3"}, [](auto& a) { a.keys.num_pages = -3; });
  Expect(Code::kBadShape, {"values.num_pages", "4", "keys.num_pages", "5"},
         [](auto& a) { a.values.num_pages = 4; });
  Expect(Code::kBadShape, {"values.page_size"}, [](auto& a) { a.values.page_size = 4; });
  Expect(Code::kBadShape, {"values.kv_heads"}, [](auto& a) { a.values.kv_heads = 1; });
  Expect(Code::kBadShape, {"values.head_dim", "36"}, [](auto& a) { a.values.head_dim = 36; });
  Expect(Code::kBadShape, {"values.head_dim", "1032"}, [](auto& a) { a.values.head_dim = 1032; });
  Expect(Code::kOverlap, {"out", "itself"}, [](auto& a) { a.values.head_dim = 40; });
  Expect(Code::kBadShape, {"keys", "address"}, [](auto& a) {
    a.keys.page_size = a.values.page_size = kHuge;
    a.keys.token_stride = 1 << 20;
  });
  Expect(Code::kBadShape, {"keys", "address"}, [](auto& a) { a.keys.page_stride = kHuge / 8; });
  Expect(Code::kBadShape, {"q", "address"}, [](auto& a) { a.q.token_stride = -kHuge; });
  Expect(Code::kBadShape, {"out.data", "null"}, [](auto& a) { a.out.data = nullptr; });
  Expect(Code::kBadShape, {"out", "address"}, [](auto& a) { a.out.token_stride = kHuge / 4; });
  Expect(Code::kBadShape, {"page_table", "null"}, [](auto& a) { a.batch.page_table = nullptr; });
  Expect(Code::kBadShape, {"page_table", "address"},
         [](auto& a) { a.batch.page_table_stride = kHuge; });
  Expect(Code::kBadShape, {"max_pages", "-1"}, [](auto& a) { a.batch.max_pages = -1; });
  Expect(Code::kBadShape, {"cu_q_lens", "2", "3"}, [](auto& a) { a.cu_q_lens = {0, 3}; });
  Expect(Code::kBadShape, {"q.tokens = 3", "2"}, [](auto& a) { a.cu_q_lens.clear(); });
  Expect(Code::kBadShape, {"sinks", "3", "4"}, [](auto& a) { a.sinks = {0, 0, 0}; });
}

TEST_F(AttentionErrors, DTypes) {
  Expect(Code::kBadDType, {"values", "float64", "float8_e4m3fn"},
         [](auto& a) { a.values.dtype = DType::kF64; });
  Expect(Code::kBadDType, {"keys", "uint8", "float16"}, [](auto& a) { a.keys.dtype = DType::kU8; });
  Expect(Code::kBadDType, {"keys", "77"}, [](auto& a) { a.keys.dtype = static_cast<DType>(77); });
  Expect(Code::kBadDType, {"q", "77"}, [](auto& a) { a.q.dtype = static_cast<DType>(77); });
}

TEST_F(AttentionErrors, Lengths) {
  Expect(Code::kBadRange, {"kv_lens[1]", "-1"}, [](auto& a) { a.kv_lens[1] = -1; });
  Expect(Code::kBadRange, {"kv_lens[1]", "25", "24"}, [](auto& a) { a.kv_lens[1] = 25; });
  Expect(Code::kBadRange, {"sequence 1", "2 queries", "1"}, [](auto& a) { a.kv_lens[1] = 1; });
  for (const bool right : {false, true}) {
    Expect(Code::kBadRange, {"sequence 1", "2 queries", "1", "window"}, [right](auto& a) {
      a.kv_lens[1] = 1;
      a.options.causal = false;
      (right ? a.options.window_right : a.options.window) = 5;
    });
  }
  Expect(Code::kBadRange, {"cu_q_lens[0]", "1"}, [](auto& a) { a.cu_q_lens[0] = 1; });
  Expect(Code::kBadRange, {"cu_q_lens[2]", "2", "3"}, [](auto& a) { a.cu_q_lens[2] = 2; });
  Expect(Code::kBadRange, {"cu_q_lens[0..1]", "4"}, [](auto& a) { a.cu_q_lens[1] = 4; });
  Expect(Code::kBadRange, {"cu_q_lens", "-2"}, [](auto& a) { a.cu_q_lens[1] = -2; });
}

TEST_F(AttentionErrors, Pages) {
  Expect(Code::kBadPage, {"page_table[1, 2]", "5", "5 pages"}, [](auto& a) { a.table[5] = 5; });
  Expect(Code::kBadPage, {"page_table[0, 1]", "-1"}, [](auto& a) { a.table[1] = -1; });
}

TEST_F(AttentionErrors, Options) {
  Expect(Code::kBadOption, {"scale", "inf"}, [](auto& a) { a.options.scale = INFINITY; });
  Expect(Code::kBadOption, {"scale", "nan"}, [](auto& a) { a.options.scale = NAN; });
  Expect(Code::kBadOption, {"window", "0"}, [](auto& a) { a.options.window = 0; });
  Expect(Code::kBadOption, {"window_right", "-1"}, [](auto& a) {
    a.options.causal = false;
    a.options.window_right = -1;
  });
  Expect(Code::kBadOption, {"window_right", "2", "causal"},
         [](auto& a) { a.options.window_right = 2; });
  Expect(Code::kBadOption, {"soft_cap", "0"}, [](auto& a) { a.options.soft_cap = 0.0f; });
  Expect(Code::kBadOption, {"soft_cap", "-1"}, [](auto& a) { a.options.soft_cap = -1.0f; });
  Expect(Code::kBadOption, {"sinks[2]", "inf"}, [](auto& a) { a.sinks = {0, 0, INFINITY, 0}; });
  Expect(Code::kBadOption, {"sinks[0]", "nan"}, [](auto& a) { a.sinks = {NAN, 0, 0, 0}; });
}

TEST_F(AttentionErrors, Overlaps) {
  Expect(Code::kOverlap, {"out", "itself"}, [](auto& a) { a.out.head_stride = 31; });
  Expect(Code::kOverlap, {"out", "itself"}, [](auto& a) { a.out.token_stride = 0; });
  Expect(Code::kOverlap, {"out", "itself"}, [](auto& a) { a.out.token_stride = 96; });
  Expect(Code::kOverlap, {"lse", "itself"}, [](auto& a) { a.out.lse_token_stride = 3; });
  Expect(Code::kOverlap, {"out", "q"}, [](auto& a) { a.out.data = const_cast<void*>(a.q.data); });
  Expect(Code::kOverlap, {"out", "keys"}, [this](auto& a) { a.out.data = At(16384 + 508); });
  Expect(Code::kOverlap, {"out", "values"}, [this](auto& a) { a.out.data = At(65536 - 4); });
  Expect(Code::kOverlap, {"lse", "values"},
         [this](auto& a) { a.out.lse = reinterpret_cast<float*>(At(65536)); });
  Expect(Code::kOverlap, {"out", "lse"},
         [this](auto& a) { a.out.lse = reinterpret_cast<float*>(At(131072 + 3 * 512 - 4)); });
  Expect(Code::kOverlap, {"lse", "kv_lens"},
         [](auto& a) { a.out.lse = reinterpret_cast<float*>(a.kv_lens.data()); });
}

TEST_F(AttentionErrors, Int8) {
  // [pages, heads, page_size], between the keys and the values.
  const KvScales scales{At(49152), DType::kF32, 16, 1, 8};
  const auto int8 = [&](auto& a) {
    a.keys.dtype = a.values.dtype = DType::kI8;
    a.keys.scales = scales;
    a.values.scales = {At(57344), DType::kF32, 16, 1, 8};
  };
  Arguments right = Right();
  right.batch = {{}, {}, right.table.data(), 3, 3};
  int8(right);
  EXPECT_NO_THROW(right.Run());
  Expect(Code::kBadDType, {"keys", "float32", "scales"}, [&](auto& a) { a.keys.scales = scales; });
  Expect(Code::kBadDType, {"values", "float32", "scales"},
         [&](auto& a) { a.values.scales = scales; });
  Expect(Code::kBadDType, {"keys.scales", "float64", "float8_e8m0fnu"}, [&](auto& a) {
    int8(a);
    a.keys.scales.dtype = DType::kF64;
  });
  Expect(Code::kBadShape, {"keys.scales.group = 48", "32, 64 or 128"}, [&](auto& a) {
    int8(a);
    a.keys.scales.group = 48;
  });
  Expect(Code::kBadShape, {"values.scales.group = 64", "values.head_dim = 32"}, [&](auto& a) {
    int8(a);
    a.values.scales.group = 64;
  });
  Expect(Code::kBadShape, {"keys.scales.group_stride", "address"}, [&](auto& a) {
    int8(a);
    a.keys.scales.group = 32;
    a.keys.scales.group_stride = std::numeric_limits<int64_t>::min();
  });
  for (const float divisor : {0.0f, -1.0f, INFINITY, NAN}) {
    Expect(Code::kBadOption, {"keys.scales.divisor"}, [&](auto& a) {
      int8(a);
      a.keys.scales.divisor = divisor;
    });
  }
  Expect(Code::kBadShape, {"keys.scales", "address"}, [&](auto& a) {
    int8(a);
    a.keys.scales.page_stride = kHuge / 3;
  });
  Expect(Code::kOverlap, {"out", "keys.scales"}, [&](auto& a) {
    int8(a);
    a.out.data = At(49152 + 5 * 16 * 4 - 4);
  });
  Expect(Code::kOverlap, {"out", "values.scales"}, [&](auto& a) {
    int8(a);
    a.out.data = At(57344 - 4);
  });
}

TEST_F(AttentionErrors, BlockFormats) {
  const auto blocks = [](PagedKv& kv) {
    kv.dtype = DType::kU8;
    kv.format = KvFormat::kQ8_0;
    kv.token_stride = 34;
    kv.head_stride = 8 * 34;
    kv.page_stride = 2 * 8 * 34;
  };
  Arguments right = Right();
  right.batch = {{}, {}, right.table.data(), 3, 3};
  blocks(right.keys);
  EXPECT_NO_THROW(right.Run());
  Expect(Code::kBadDType, {"keys", "q8_0", "int8", "uint8"}, [&](auto& a) {
    blocks(a.keys);
    a.keys.dtype = DType::kI8;
  });
  Expect(Code::kBadShape, {"values.head_dim = 40", "32", "q8_0"}, [&](auto& a) {
    blocks(a.values);
    a.values.head_dim = 40;
  });
  Expect(Code::kBadDType, {"values", "q8_0", "scales"}, [&](auto& a) {
    blocks(a.values);
    a.values.scales.data = At(49152);
  });
  Expect(Code::kBadDType, {"keys.format = 99"}, [&](auto& a) {
    blocks(a.keys);
    a.keys.format = static_cast<KvFormat>(99);
  });
  Expect(Code::kBadShape, {"keys.token_stride = 32", "34 bytes"}, [&](auto& a) {
    blocks(a.keys);
    a.keys.token_stride = 32;
  });
  Expect(Code::kBadShape, {"values.page_stride = -33", "34 bytes"}, [&](auto& a) {
    blocks(a.values);
    a.values.page_stride = -33;
  });
  Expect(Code::kOverlap, {"out", "keys"}, [&](auto& a) {
    blocks(a.keys);
    a.out.data = At(16384 + 5 * 2 * 8 * 34 - 1);
  });
}

// For callers whose arguments have other names: what() begins with argument().
TEST_F(AttentionErrors, TheArgumentIsNamedBesideTheText) {
  const std::pair<std::string, std::function<void(Arguments&)>> cases[] = {
      {"kv_lens", [](auto& a) { a.kv_lens[1] = -1; }},
      {"page_table", [](auto& a) { a.table[0] = 99; }},
      {"keys", [](auto& a) { a.keys.page_size = 0; }},
      {"q", [](auto& a) { a.q.head_dim = 33; }},
      {"scale", [](auto& a) { a.options.scale = std::numeric_limits<float>::infinity(); }},
  };
  for (const auto& [argument, spoil] : cases) {
    Arguments arguments = Right();
    arguments.batch.page_table = arguments.table.data();
    arguments.batch.max_pages = 3;
    arguments.batch.page_table_stride = 3;
    spoil(arguments);
    try {
      arguments.Run();
      ADD_FAILURE() << "did not throw for " << argument;
    } catch (const Error& error) {
      EXPECT_EQ(error.argument(), argument) << error.what();
      EXPECT_TRUE(std::string_view(error.what()).starts_with(argument));
    }
  }
  EXPECT_EQ(Error(Code::kOutOfMemory, "no memory for 8 bytes").argument(), "");
}

// Interleaved with each other and with inputs, but sharing no byte: legal.
TEST_F(AttentionErrors, NeighboursAreNoOverlap) {
  Arguments right = Right();
  right.batch = {{}, {}, right.table.data(), 3, 3};
  right.q.token_stride = 1024;  // q, out and lse in one row of a token
  right.out.data = At(512);
  right.out.token_stride = 1024;
  right.out.lse = reinterpret_cast<float*>(At(1024));
  right.out.lse_token_stride = 1024;
  EXPECT_NO_THROW(right.Run());
  right.out.token_stride = -1024;
  right.out.data = At(512 + 2 * 4096);
  EXPECT_NO_THROW(right.Run());
}

}  // namespace
}  // namespace riffle::test
