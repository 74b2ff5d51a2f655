// SparseAttention against softmax in double, on every target, and its bits against each other.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>
#include <utility>

#include "riffle/error.h"
#include "riffle/sparse_attention.h"
#include "testing/distributions.h"
#include "testing/reference.h"
#include "testing/rng.h"
#include "testing/sparse_attention_reference.h"
#include "testing/targets.h"
#include "testing/topk_check.h"

namespace riffle::test {
namespace {

double Normal(Rng& rng) {
  double sum = -6;
  for (int i = 0; i < 12; ++i) {
    sum += rng.Unit();
  }
  return sum;
}

uint8_t RandomCode(Rng& rng) {  // e4m3, finite
  const auto code = static_cast<uint8_t>(rng.Below(256));
  return (code & 127) == 127 ? uint8_t{0} : code;
}

// A pool of rows and what they are; rows that nobody names are NaN.
struct Pool {
  std::vector<uint8_t> bytes;
  SparseRows rows;
  std::vector<std::vector<double>> values;
  std::vector<int32_t> slots;  // [tokens][cols]
  std::vector<int32_t> lengths;
  int64_t cols = 0;

  SparseScope scope(bool with_lengths) const {
    return {rows, slots.data(), cols, cols, with_lengths ? lengths.data() : nullptr};
  }
};

void FillRow(Pool& pool, int64_t slot, bool power_of_two, Rng& rng) {
  SparseRows& rows = pool.rows;
  if (rows.format == SparseRowFormat::kPlain) {
    const auto element = static_cast<int64_t>(SizeOf(rows.dtype));
    uint8_t* at = pool.bytes.data() + slot * rows.row_stride * element;
    for (int64_t i = 0; i < rows.row_dim; ++i) {
      Store(rows.dtype, Encode(rows.dtype, static_cast<float>(Normal(rng))), at + i * element);
      pool.values[static_cast<size_t>(slot)].push_back(Decode(rows.dtype, at + i * element));
    }
    return;
  }
  const bool v4 = rows.format == SparseRowFormat::kMla584;
  uint8_t* at = v4 ? pool.bytes.data() + slot / rows.page_size * rows.page_stride +
                         slot % rows.page_size * 576
                   : pool.bytes.data() + slot * rows.row_stride;
  const int codes = v4 ? 448 : 512;
  std::generate(at, at + codes, [&] { return RandomCode(rng); });
  uint8_t* rope = at + (v4 ? 448 : 528);
  for (int i = 0; i < 64; ++i) {
    Store(DType::kBF16, Encode(DType::kBF16, static_cast<float>(Normal(rng))), rope + 2 * i);
  }
  if (v4) {
    uint8_t* scales = pool.bytes.data() + slot / rows.page_size * rows.page_stride +
                      rows.page_size * 576 + slot % rows.page_size * 8;
    std::generate(scales, scales + 7, [&] { return static_cast<uint8_t>(rng.Between(116, 121)); });
    pool.values[static_cast<size_t>(slot)] = DecodeMla584(at, scales);
  } else {
    for (int i = 0; i < 4; ++i) {
      const float scale = power_of_two ? std::ldexp(1.0f, static_cast<int>(rng.Between(-11, -6)))
                                       : static_cast<float>(rng.Unit() * 0.01);
      std::memcpy(at + 512 + 4 * i, &scale, 4);
    }
    pool.values[static_cast<size_t>(slot)] = DecodeMla656(at);
  }
}

Pool MakePool(SparseRowFormat format, DType dtype, int64_t dim, int64_t slots, int64_t tokens,
              int64_t cols, Rng& rng, bool power_of_two = true) {
  Pool pool;
  pool.cols = cols;
  pool.rows = {nullptr, dtype, slots, dim, dim + 16, 0, 0, format};
  int64_t bytes = slots * (dim + 16) * static_cast<int64_t>(SizeOf(dtype));
  if (format == SparseRowFormat::kMla656) {
    pool.rows.row_stride = 656;
    bytes = slots * 656;
  } else if (format == SparseRowFormat::kMla584) {
    pool.rows.page_size = 7;
    pool.rows.page_stride = 7 * 584 + 40;
    bytes = (slots + 6) / 7 * pool.rows.page_stride;
  }
  pool.bytes.assign(static_cast<size_t>(bytes), 0xff);  // NaN in every format
  pool.values.resize(static_cast<size_t>(slots));
  for (int64_t t = 0; t < tokens; ++t) {
    pool.lengths.push_back(static_cast<int32_t>(rng.Between(0, cols)));
    for (int64_t i = 0; i < cols; ++i) {
      pool.slots.push_back(rng.OneIn(9) ? -1 : static_cast<int32_t>(rng.Below(slots)));
    }
  }
  pool.rows.data = pool.bytes.data();
  for (const int32_t slot : std::set<int32_t>(pool.slots.begin(), pool.slots.end())) {
    if (slot >= 0) {
      FillRow(pool, slot, power_of_two, rng);
    }
  }
  return pool;
}

struct Query {
  std::vector<uint8_t> bytes;
  HeadsView view;
  std::vector<std::vector<double>> values;  // [tokens * heads]
};

Query MakeQuery(DType dtype, int64_t tokens, int64_t heads, int64_t dim, Rng& rng) {
  Query q;
  const auto element = static_cast<int64_t>(SizeOf(dtype));
  q.bytes.resize(static_cast<size_t>(tokens * heads * dim * element));
  q.values.resize(static_cast<size_t>(tokens * heads));
  for (int64_t i = 0; i < tokens * heads * dim; ++i) {
    uint8_t* at = q.bytes.data() + i * element;
    Store(dtype, Encode(dtype, static_cast<float>(Normal(rng))), at);
    q.values[static_cast<size_t>(i / dim)].push_back(Decode(dtype, at));
  }
  q.view = {q.bytes.data(), dtype, tokens, heads, dim, heads * dim, dim};
  return q;
}

struct Result {
  std::vector<uint8_t> out;
  std::vector<float> lse;
  bool operator==(const Result&) const = default;
};

Result Attended(const HeadsView& q, const std::vector<SparseScope>& scopes,
                const SparseAttentionOptions& options) {
  const int64_t dim = options.value_dim != 0 ? options.value_dim : q.head_dim;
  Result result;
  result.out.resize(static_cast<size_t>(q.tokens * q.heads * dim) * SizeOf(q.dtype));
  result.lse.resize(static_cast<size_t>(q.tokens * q.heads));
  SparseAttention(q, scopes, {result.out.data(), q.heads * dim, dim, result.lse.data(), q.heads},
                  options);
  return result;
}

// The largest error beside what it may be.
void Compare(const Query& q, const std::vector<const Pool*>& pools, bool with_lengths,
             const Result& result, const SparseAttentionOptions& options, double tolerance,
             const std::string& what, double lse_tolerance = 2e-4) {
  const int64_t dim = options.value_dim != 0 ? options.value_dim : q.view.head_dim;
  for (int64_t t = 0; t < q.view.tokens; ++t) {
    std::vector<std::vector<double>> rows;
    for (const Pool* pool : pools) {
      const int64_t length = with_lengths ? pool->lengths[static_cast<size_t>(t)] : pool->cols;
      for (int64_t i = 0; i < length; ++i) {
        const int32_t slot = pool->slots[static_cast<size_t>(t * pool->cols + i)];
        if (slot >= 0) rows.push_back(pool->values[static_cast<size_t>(slot)]);
      }
    }
    for (int64_t h = 0; h < q.view.heads; ++h) {
      const auto at = static_cast<size_t>(t * q.view.heads + h);
      const double sink = options.sinks.empty() ? -INFINITY : options.sinks[static_cast<size_t>(h)];
      const ReferenceHead want =
          ReferenceAttend(q.values[at], rows, dim, options.scale.value_or(0.1f), sink);
      if (std::isinf(want.lse)) {
        ASSERT_EQ(result.lse[at], static_cast<float>(want.lse)) << what;
      } else {
        ASSERT_NEAR(result.lse[at], want.lse, lse_tolerance * std::max(1.0, std::fabs(want.lse)))
            << what << " token " << t << " head " << h;
      }
      for (int64_t i = 0; i < dim; ++i) {
        const double got = Decode(
            q.view.dtype, result.out.data() + (static_cast<int64_t>(at) * dim + i) *
                                                  static_cast<int64_t>(SizeOf(q.view.dtype)));
        ASSERT_NEAR(got, want.out[static_cast<size_t>(i)], tolerance)
            << what << " token " << t << " head " << h << " element " << i;
      }
    }
  }
}

TEST(SparseAttention, EveryFormat) {
  OnEveryTarget([](const std::string& target) {
    Rng rng(3);
    for (const DType q_dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
      for (int kind = 0; kind < 6; ++kind) {
        const DType dtype = kind < 3 ? static_cast<DType>(kind) : DType::kU8;
        const auto format = kind < 3    ? SparseRowFormat::kPlain
                            : kind == 5 ? SparseRowFormat::kMla584
                                        : SparseRowFormat::kMla656;
        const int64_t dim = kind < 3 ? 48 + 16 * kind : kind == 5 ? 512 : 576;
        const Query q = MakeQuery(q_dtype, 3, 11, dim, rng);
        const Pool pool = MakePool(format, dtype, dim, 400, 3, 300, rng, kind != 4);
        SparseAttentionOptions options;
        options.scale = 0.1f;
        options.value_dim = kind % 2 == 0 ? dim - 16 : 0;
        options.pool = &PoolOf(1 + kind % 3);
        for (const bool lengths : {false, true}) {
          const Result result = Attended(q.view, {pool.scope(lengths)}, options);
          // Rounded outputs; bf16 probabilities and, of odd scales, bf16 rows.
          // Values are below 8.
          const double tolerance = q_dtype == DType::kF32   ? 1e-4
                                   : q_dtype == DType::kF16 ? 8 * 0x1p-11 + 1e-4
                                                            : 3 * 8 * 0x1p-9;
          const bool rounded_rows = q_dtype == DType::kBF16 && kind == 4;
          Compare(q, {&pool}, lengths, result, options, tolerance,
                  target + " q " + Name(q_dtype) + " kind " + std::to_string(kind),
                  rounded_rows ? 0.02 : 2e-4);
        }
      }
    }
  });
}

TEST(SparseAttention, ScopesAndSinks) {
  OnEveryTarget([](const std::string& target) {
    Rng rng(4);
    const Query q = MakeQuery(DType::kF32, 4, 9, 512, rng);
    const Pool window = MakePool(SparseRowFormat::kPlain, DType::kBF16, 512, 200, 4, 128, rng);
    const Pool entries = MakePool(SparseRowFormat::kMla584, DType::kU8, 512, 500, 4, 170, rng);
    std::vector<float> sinks = {1, -INFINITY, INFINITY, 0, 30, -30, 2, 3, 4};
    SparseAttentionOptions options;
    options.scale = 0.1f;
    options.sinks = sinks;
    const std::vector<SparseScope> scopes = {window.scope(true), entries.scope(true)};
    const Result result = Attended(q.view, scopes, options);
    Compare(q, {&window, &entries}, true, result, options, 1e-4, target);
    // Without the sink in lse: that of a call without sinks.
    options.lse_with_sinks = false;
    const Result raw = Attended(q.view, scopes, options);
    options.sinks = {};
    EXPECT_EQ(raw.out, result.out);
    EXPECT_EQ(raw.lse, Attended(q.view, scopes, options).lse);
  });
}

TEST(SparseAttention, NothingNamed) {
  Rng rng(5);
  const Query q = MakeQuery(DType::kBF16, 2, 3, 64, rng);
  Pool pool = MakePool(SparseRowFormat::kPlain, DType::kBF16, 64, 10, 2, 4, rng);
  pool.slots.assign(8, -1);
  const Result none = Attended(q.view, {pool.scope(false)}, {});
  EXPECT_TRUE(std::all_of(none.out.begin(), none.out.end(), [](uint8_t x) { return x == 0; }));
  EXPECT_EQ(none.lse, std::vector<float>(6, -INFINITY));
  const std::vector<float> sinks = {1, 2, 3};
  SparseAttentionOptions options;
  options.sinks = sinks;
  EXPECT_EQ(Attended(q.view, {pool.scope(false)}, options).lse,
            (std::vector<float>{1, 2, 3, 1, 2, 3}));
}

// The same bits for any order of slots, any threads, and alone.
TEST(SparseAttention, Invariance) {
  OnEveryTarget([](const std::string& target) {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      Rng rng(6);
      const Query q = MakeQuery(dtype, 5, 21, 576, rng);
      Pool pool = MakePool(SparseRowFormat::kPlain, dtype, 576, 3000, 5, 700, rng);
      SparseAttentionOptions options;
      options.value_dim = 512;
      options.pool = &PoolOf(1);
      const Result want = Attended(q.view, {pool.scope(false)}, options);
      for (int64_t t = 0; t < 5; ++t) {
        for (int64_t i = pool.cols - 1; i > 0; --i) {
          std::swap(pool.slots[static_cast<size_t>(t * pool.cols + i)],
                    pool.slots[static_cast<size_t>(t * pool.cols + rng.Below(i + 1))]);
        }
      }
      for (const int threads : {1, 2, 3, 8}) {
        options.pool = &PoolOf(threads);
        EXPECT_EQ(Attended(q.view, {pool.scope(false)}, options), want) << target << " " << threads;
      }
      HeadsView one = q.view;
      one.tokens = 1;
      const Result first = Attended(one, {pool.scope(false)}, options);
      EXPECT_EQ(std::memcmp(first.out.data(), want.out.data(), first.out.size()), 0) << target;
    }
  });
}

TEST(SparseAttention, NaN) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    Rng rng(7);
    const Query q = MakeQuery(dtype, 2, 2, 32, rng);
    Pool pool = MakePool(SparseRowFormat::kPlain, dtype, 32, 5, 2, 5, rng);
    pool.slots = {0, 1, 2, -1, -1, 0, 1, 3, -1, -1};
    for (const int64_t slot : {0, 1, 2}) {
      pool.values[static_cast<size_t>(slot)].clear();
      FillRow(pool, slot, true, rng);
    }
    std::memset(pool.bytes.data() + 3 * pool.rows.row_stride * static_cast<int64_t>(SizeOf(dtype)),
                0xff, 4);  // row 3, which only the second query names
    const Result result = Attended(q.view, {pool.scope(false)}, {});
    for (size_t i = 0; i < 64; ++i) {
      EXPECT_FALSE(std::isnan(Decode(dtype, result.out.data() + i * SizeOf(dtype))));
      EXPECT_TRUE(std::isnan(Decode(dtype, result.out.data() + (64 + i) * SizeOf(dtype))));
    }
  }
}

TEST(SparseAttention, Errors) {
  Rng rng(8);
  const Query q = MakeQuery(DType::kF32, 2, 3, 64, rng);
  const Pool pool = MakePool(SparseRowFormat::kPlain, DType::kF32, 64, 10, 2, 4, rng);
  const auto refused = [&](const auto& spoil, Code code, const std::string& text) {
    HeadsView view = q.view;
    SparseScope scope = pool.scope(false);
    SparseAttentionOptions options;
    std::vector<int32_t> slots = pool.slots, lengths = {1, 2};
    std::vector<float> out(2 * 3 * 64, 5.0f);
    scope.slots = slots.data();
    AttentionOut to{out.data(), 192, 64, nullptr, 0};
    std::vector<float> sinks(3);
    spoil(view, scope, options, slots, lengths, to, sinks);
    try {
      SparseAttention(view, std::span(&scope, 1), to, options);
      ADD_FAILURE() << "not refused: " << text;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), code) << error.what();
      EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what();
    }
    EXPECT_EQ(out, std::vector<float>(2 * 3 * 64, 5.0f));
  };
#define SPOIL(code)                                                                    \
  [&](auto& v, auto& s, auto& o, auto& slots, auto& lengths, auto& out, auto& sinks) { \
    (void)v, (void)s, (void)o, (void)slots, (void)lengths, (void)out, (void)sinks;     \
    code;                                                                              \
  }
  refused(SPOIL(v.head_dim = 40), Code::kBadShape, "q.head_dim = 40");
  refused(SPOIL(v.dtype = DType::kI8), Code::kBadDType, "q is int8");
  refused(SPOIL(s.rows.dtype = DType::kF64), Code::kBadDType, "scopes[0].rows are float64");
  refused(SPOIL(s.rows.row_dim = 32), Code::kBadShape, "scopes[0].rows.row_dim = 32");
  refused(SPOIL(s.rows.format = SparseRowFormat::kMla656), Code::kBadDType, "has uint8");
  refused(SPOIL(slots[5] = 10), Code::kBadPage, "scopes[0].slots[1,1] = 10");
  refused(SPOIL(slots[0] = -2), Code::kBadPage, "scopes[0].slots[0,0] = -2");
  refused(SPOIL(lengths[1] = 5; s.lengths = lengths.data()), Code::kBadRange,
          "scopes[0].lengths[1] = 5");
  refused(SPOIL(o.value_dim = 80), Code::kBadOption, "value_dim = 80");
  refused(SPOIL(o.scale = NAN), Code::kBadOption, "scale = nan");
  refused(SPOIL(sinks[1] = NAN; o.sinks = sinks), Code::kBadOption, "sinks[1] is NaN");
  refused(SPOIL(out.data = nullptr), Code::kBadShape, "out.data is null");
  refused(SPOIL(out.head_stride = 60), Code::kOverlap, "out overlaps itself");
#undef SPOIL
  // Skipped on request.
  Pool wild = pool;
  wild.slots[1] = 10;
  wild.slots[2] = -5;
  SparseAttentionOptions options;
  options.ignore_invalid = true;
  Pool same = pool;
  same.slots[1] = same.slots[2] = -1;
  EXPECT_EQ(Attended(q.view, {wild.scope(false)}, options),
            Attended(q.view, {same.scope(false)}, {}));
}

}  // namespace
}  // namespace riffle::test
