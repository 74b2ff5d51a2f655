// SparseAttention over rows in every format of PagedKv: the bits of PagedAttention where there is
// one format, softmax in double where there are several.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <string>

#include "riffle/error.h"
#include "riffle/sparse_attention.h"
#include "testing/coded_pool.h"
#include "testing/kv_codings.h"
#include "testing/reference.h"
#include "testing/rng.h"
#include "testing/sparse_attention_reference.h"
#include "testing/targets.h"
#include "testing/topk_check.h"

namespace riffle::test {
namespace {

std::string NameOf(const KvCoding& coding) {
  return std::string(coding.format == KvFormat::kPlain ? Name(coding.dtype) : Name(coding.format)) +
         " scaling " + std::to_string(static_cast<int>(coding.scaling));
}

// A pool whose first `count` slots of head 1 hold rows; all else is NaN.
struct Rows {
  CodedPool pool;
  std::vector<std::vector<double>> values;

  Rows(const KvCoding& coding, CodedPoolShape shape, int64_t count, Rng& rng)
      : pool(coding, shape) {
    for (int slot = 0; slot < count; ++slot) {
      std::vector<double> x(static_cast<size_t>(shape.dim));
      std::generate(x.begin(), x.end(), [&] { return 4 * rng.Unit() - 2; });
      pool.Put(slot / shape.page_size, slot % shape.page_size, shape.heads - 1, x);
      values.push_back(x);
    }
  }
};

struct Query {
  std::vector<uint8_t> bytes;
  std::vector<std::vector<double>> values;  // of each head
  HeadsView view;

  Query(DType dtype, int64_t heads, int64_t dim, Rng& rng) {
    const auto element = static_cast<int64_t>(SizeOf(dtype));
    bytes.resize(static_cast<size_t>(heads * dim * element));
    values.resize(static_cast<size_t>(heads));
    for (int64_t i = 0; i < heads * dim; ++i) {
      uint8_t* at = bytes.data() + i * element;
      Store(dtype, Encode(dtype, static_cast<float>(2 * rng.Unit() - 1)), at);
      values[static_cast<size_t>(i / dim)].push_back(Decode(dtype, at));
    }
    view = {bytes.data(), dtype, 1, heads, dim, heads * dim, dim};
  }
};

struct Result {
  std::vector<uint8_t> out;
  std::vector<float> lse;

  Result(const HeadsView& q, int64_t value_dim)
      : out(static_cast<size_t>(q.heads * value_dim) * SizeOf(q.dtype), 0xee),
        lse(static_cast<size_t>(q.heads), 7) {}
  bool operator==(const Result& other) const {
    return out == other.out &&
           std::memcmp(lse.data(), other.lse.data(), lse.size() * sizeof(float)) == 0;
  }
};

AttentionOut To(Result& result, const HeadsView& q, int64_t value_dim) {
  return {result.out.data(), q.heads * value_dim, value_dim, result.lse.data(), q.heads};
}

Result Paged(const HeadsView& q, const PagedKv& keys, int32_t count, int64_t value_dim) {
  PagedKv values = keys;
  values.head_dim = value_dim;
  std::vector<int32_t> table(static_cast<size_t>(keys.num_pages));
  std::iota(table.begin(), table.end(), 0);
  Result result(q, value_dim);
  PagedAttention(q, keys, values,
                 {{}, std::span(&count, 1), table.data(), keys.num_pages, keys.num_pages},
                 To(result, q, value_dim));
  return result;
}

// All of `count` rows, last first, of which scopes begin at `cuts`.
Result Named(const HeadsView& q, const SparseRows& rows, int32_t count, int64_t value_dim,
             std::vector<int32_t> cuts, int threads) {
  std::vector<int32_t> slots(static_cast<size_t>(count));
  std::iota(slots.begin(), slots.end(), 0);
  cuts.insert(cuts.begin(), 0);
  cuts.push_back(count);
  std::vector<SparseScope> scopes;
  for (size_t s = 0; s + 1 < cuts.size(); ++s) {
    std::reverse(slots.begin() + cuts[s], slots.begin() + cuts[s + 1]);
    const int64_t cols = cuts[s + 1] - cuts[s];
    scopes.push_back({rows, slots.data() + cuts[s], cols, cols});
  }
  SparseAttentionOptions options;
  options.value_dim = value_dim;
  options.pool = &PoolOf(threads);
  Result result(q, value_dim);
  SparseAttention(q, scopes, To(result, q, value_dim), options);
  return result;
}

TEST(SparseRows, BitsOfPagedAttention) {
  OnEveryTarget([](const std::string& target) {
    uint64_t seed = 0;
    for (const KvCoding& coding : AllKvCodings()) {
      for (const DType q_dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
        Rng rng(++seed);
        const int32_t count = seed % 3 == 0 ? 600 : static_cast<int32_t>(1 + rng.Below(130));
        const int dim = seed % 2 == 0 ? 576 : 64;
        const int64_t value_dim = seed % 4 == 0 ? 512 : dim;
        const Query q(q_dtype, 1 + static_cast<int64_t>(rng.Below(40)), dim, rng);
        // One head: slots are pages of one row. Two heads: they are not, so rows are copied.
        for (const int heads : {1, 2}) {
          const CodedPoolShape shape{
              count / 7 + 1, 7, heads, dim, Layout::kHND, static_cast<int>(seed % 3)};
          const Rows rows(coding, shape, count, rng);
          const PagedKv kv = OneHead(rows.pool.view(), heads - 1);
          const Result want = Paged(q.view, kv, count, value_dim);
          const std::string what = target + " " + NameOf(coding) + " q " + Name(q_dtype) +
                                   " count " + std::to_string(count) + " of heads " +
                                   std::to_string(heads);
          EXPECT_EQ(Named(q.view, RowsOf(kv), count, value_dim, {}, 1), want) << what;
          EXPECT_EQ(Named(q.view, RowsOf(kv), count, value_dim, {count / 3, count / 2}, 3), want)
              << what << " in scopes";
        }
      }
    }
  });
}

// Pools of two formats, and of rows with scales of their own beside them.
TEST(SparseRows, SeveralFormats) {
  OnEveryTarget([](const std::string& target) {
    const std::vector<KvCoding> codings = AllKvCodings();
    for (size_t i = 0; i < codings.size(); ++i) {
      const KvCoding pair[] = {codings[i], codings[(i + 7) % codings.size()]};
      for (const DType q_dtype : {DType::kF32, DType::kBF16}) {
        Rng rng(100 + i);
        const int dim = 192;
        const Query q(q_dtype, 5, dim, rng);
        const Rows rows[] = {{pair[0], {9, 16, 1, dim}, 9 * 16, rng},
                             {pair[1], {40, 4, 2, dim}, 40 * 4, rng}};
        std::vector<std::vector<double>> named;
        std::vector<int32_t> slots[2];
        std::vector<SparseScope> scopes;
        for (int s = 0; s < 2; ++s) {
          for (int n = 0; n < 77; ++n) {  // some twice
            slots[s].push_back(static_cast<int32_t>(rng.Below(rows[s].values.size())));
            named.push_back(rows[s].values[static_cast<size_t>(slots[s].back())]);
          }
          slots[s].push_back(-1);
          scopes.push_back(
              {RowsOf(OneHead(rows[s].pool.view(), s)), slots[s].data(), 78, 78, nullptr});
        }
        Result result(q.view, dim);
        SparseAttention(q.view, scopes, To(result, q.view, dim));
        for (int64_t h = 0; h < q.view.heads; ++h) {
          const ReferenceHead want = ReferenceAttend(q.values[static_cast<size_t>(h)], named, dim,
                                                     1 / std::sqrt(double{dim}), -INFINITY);
          const std::string what = target + " " + NameOf(pair[0]) + ", " + NameOf(pair[1]);
          EXPECT_NEAR(result.lse[static_cast<size_t>(h)], want.lse, 1e-4) << what;
          for (int64_t j = 0; j < dim; ++j) {
            const auto at = static_cast<size_t>(h * dim + j);
            ASSERT_NEAR(Decode(q_dtype, result.out.data() + at * SizeOf(q_dtype)),
                        want.out[static_cast<size_t>(j)], q_dtype == DType::kF32 ? 1e-5 : 1e-2)
                << what;
          }
        }
      }
    }
  });
}

TEST(SparseRows, Errors) {
  Rng rng(8);
  const Query q(DType::kF32, 2, 64, rng);
  const KvCoding coding{.dtype = DType::kI8, .scaling = Scaling::kGroups, .group = 32};
  const Rows of_pool(coding, {2, 16, 1, 64}, 32, rng);
  const SparseRows rows = RowsOf(of_pool.pool.view());
  const std::vector<int32_t> slots = {1, 2, 3};
  const auto refused = [&](const auto& spoil, Code code, const std::string& text) {
    SparseScope scope{rows, slots.data(), 3, 3};
    SparseAttentionOptions options;
    Result result(q.view, 64);
    AttentionOut out = To(result, q.view, 64);
    spoil(scope.rows, options, out);
    try {
      SparseAttention(q.view, std::span(&scope, 1), out, options);
      ADD_FAILURE() << "not refused: " << text;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), code) << error.what();
      EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what();
    }
    EXPECT_EQ(result, Result(q.view, 64));
  };
#define SPOIL(code)                  \
  [&](auto& r, auto& o, auto& out) { \
    (void)r, (void)o, (void)out;     \
    code;                            \
  }
  refused(SPOIL(r.dtype = DType::kI16), Code::kBadDType, "scopes[0].rows are int16");
  refused(SPOIL(r.dtype = DType::kF16), Code::kBadDType, "are float16 and have scales");
  refused(SPOIL(r.blocks = KvFormat::kQ8_0), Code::kBadDType, "rows of q8_0 are int8, not uint8");
  refused(SPOIL(r.blocks = KvFormat::kQ8_0; r.dtype = DType::kU8), Code::kBadDType,
          "are q8_0 and have scales");
  refused(SPOIL(r.blocks = static_cast<KvFormat>(99)), Code::kBadOption, "rows.blocks = 99");
  refused(SPOIL(r.scales.divisor = 0), Code::kBadOption, "divisor = 0");
  refused(SPOIL(r.scales.dtype = DType::kF64), Code::kBadDType, "rows.scales are float64");
  refused(SPOIL(r.scales.group = 48), Code::kBadShape, "rows.scales.group = 48");
  refused(SPOIL(r.scales.group = 128), Code::kBadShape, "a divisor of row_dim = 64");
  refused(SPOIL(r.scales.group_stride = INT64_MIN), Code::kBadShape, "does not fit an address");
  refused(SPOIL(r.scales.token_stride = INT64_MAX / 2), Code::kBadShape, "rows.scales");
  refused(SPOIL(o.value_dim = 48), Code::kBadOption, "value_dim = 48 is not a multiple of 32");
  refused(SPOIL(r.format = SparseRowFormat::kMla656; r.dtype = DType::kU8), Code::kBadOption,
          "have scales of their own");
  refused(SPOIL(out.lse = const_cast<float*>(static_cast<const float*>(r.scales.data))),
          Code::kOverlap, "lse shares memory with rows.scales");
#undef SPOIL
}

}  // namespace
}  // namespace riffle::test
