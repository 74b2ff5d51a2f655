// Calls through the C API leave the same bytes as the C++ calls that they stand for, whatever the
// shapes, dtypes, formats and options.
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "riffle/riffle.h"
#include "testing/attention_case.h"
#include "testing/rng.h"
#include "testing/write_kv_case.h"
#include "tests/c_api/c_structs.h"

namespace riffle::test {
namespace {

// The numbers of the C API are those of the C++ enumerations.
static_assert(RIFFLE_F32 == static_cast<int>(DType::kF32));
static_assert(RIFFLE_BF16 == static_cast<int>(DType::kBF16));
static_assert(RIFFLE_I8 == static_cast<int>(DType::kI8));
static_assert(RIFFLE_U64 == static_cast<int>(DType::kU64));
static_assert(RIFFLE_E8M0 == kNumDTypes - 1);
static_assert(RIFFLE_KV_IQ4_NL == kNumKvFormats - 1);
static_assert(RIFFLE_KV_Q4_1 == static_cast<int>(KvFormat::kQ4_1));
static_assert(RIFFLE_WEIGHT_Q8_0 == static_cast<int>(WeightFormat::kQ8_0));
static_assert(RIFFLE_LANE_SORT == static_cast<int>(Algorithm::kLaneSort));
static_assert(RIFFLE_INDEX_I64 == static_cast<int>(IndexType::kInt64));
static_assert(RIFFLE_OUT_OF_MEMORY == static_cast<int>(Code::kOutOfMemory) + 1);

// Random bytes: every dtype has NaNs, infinities and subnormals among them.
std::vector<uint8_t> Bytes(size_t count, uint64_t seed) {
  Rng rng(seed);
  std::vector<uint8_t> bytes(count);
  for (uint8_t& byte : bytes) {
    byte = static_cast<uint8_t>(rng.Next());
  }
  return bytes;
}

std::vector<float> Normal(size_t count, uint64_t seed) {
  Rng rng(seed);
  std::vector<float> x(count);
  for (float& value : x) {
    value = static_cast<float>(rng.Unit() + rng.Unit() + rng.Unit() - 1.5);
  }
  return x;
}

#define EXPECT_OK(call) EXPECT_EQ(call, RIFFLE_OK) << riffle_error_message()

TEST(CApiParity, TopKOfEveryDType) {
  for (int dtype = 0; dtype < kNumTopKDTypes; ++dtype) {
    for (const bool wide : {false, true}) {
      const MatrixView x = {nullptr, static_cast<DType>(dtype), 5, 700, -703};
      const std::vector<uint8_t> bytes = Bytes(5 * 703 * SizeOf(x.dtype), dtype);
      MatrixView view = x;
      view.data = bytes.data() + 4 * 703 * SizeOf(x.dtype);
      const auto index_type = wide ? IndexType::kInt64 : IndexType::kInt32;
      std::vector<uint8_t> values(5 * 20 * SizeOf(x.dtype), 0xaa), c_values = values;
      std::vector<uint8_t> indices(5 * 21 * SizeOf(index_type), 0xaa), c_indices = indices;
      std::vector<TopKStats> stats(5);
      riffle_topk_stats c_stats[5];
      TopKOptions options;
      options.largest = dtype % 2 == 0;
      TopK(view, 17, {values.data(), 20, indices.data(), 21, stats.data(), index_type}, options);
      const riffle_matrix matrix = ToC(view);
      const riffle_topk_out out = {sizeof(out), c_values.data(), 20,           c_indices.data(),
                                   21,          c_stats,         wide ? 1 : 0, 0};
      riffle_topk_options c_options = {};
      c_options.size = sizeof(c_options);
      c_options.smallest = dtype % 2;
      EXPECT_OK(riffle_topk(&matrix, 17, &out, &c_options));
      EXPECT_EQ(values, c_values) << Name(x.dtype);
      EXPECT_EQ(indices, c_indices) << Name(x.dtype);
      for (int r = 0; r < 5; ++r) {
        EXPECT_EQ(std::memcmp(&stats[r].kth_value, &c_stats[r].kth_value, sizeof(double)), 0);
        EXPECT_EQ(stats[r].ties_at_kth, c_stats[r].ties_at_kth);
        EXPECT_EQ(stats[r].elements_examined, c_stats[r].elements_examined);
        EXPECT_EQ(stats[r].depth, c_stats[r].depth);
      }
    }
  }
}

TEST(CApiParity, TopKOfOneKPerRowWithIdsAndLaneSort) {
  const std::vector<float> x = Normal(3 * 900, 1);
  const std::vector<int32_t> k = {3, 900, 1};
  std::vector<int32_t> ids(900);
  for (int i = 0; i < 900; ++i) {
    ids[i] = 5000 - i;
  }
  for (const Algorithm algorithm : {Algorithm::kBucketMaxima, Algorithm::kLaneSort}) {
    std::vector<float> values(3 * 900), c_values(3 * 900);
    std::vector<int32_t> indices(3 * 900), c_indices(3 * 900);
    TopKOptions options;
    options.algorithm = algorithm;
    options.lanes = 64;
    options.ids = {ids.data(), IndexType::kInt32, 0};
    TopK(View(x.data(), 3, 900), k, View(values.data(), indices.data(), 900), options);
    const riffle_matrix matrix = ToC(View(x.data(), 3, 900));
    riffle_topk_out out = {};
    out.size = sizeof(out);
    out.values = c_values.data();
    out.values_stride = out.indices_stride = 900;
    out.indices = c_indices.data();
    riffle_topk_options c_options = {};
    c_options.size = sizeof(c_options);
    c_options.algorithm = static_cast<int32_t>(algorithm);
    c_options.lanes = 64;
    c_options.ids = ids.data();
    EXPECT_OK(riffle_topk_each(&matrix, k.data(), &out, &c_options));
    EXPECT_EQ(values, c_values);
    EXPECT_EQ(indices, c_indices);
  }
}

TEST(CApiParity, TopKOfRanges) {
  const std::vector<float> x = Normal(6 * 400, 2);
  const std::vector<int32_t> starts = {0, 10, 399, 400, 7, 0}, ends = {400, 60, 400, 400, 3, 5};
  const std::vector<int32_t> seq_lens = {400, 1, 77};
  const riffle_matrix matrix = ToC(View(x.data(), 6, 400));
  for (const bool short_order : {false, true}) {
    std::vector<int32_t> indices(6 * 33, 7), c_indices(6 * 33, 7);
    TopKOptions options;
    options.index_order_if_short = short_order;
    riffle_topk_options c_options = {};
    c_options.size = sizeof(c_options);
    c_options.index_order_if_short = short_order ? 1 : 0;
    TopKPerRow(View(x.data(), 6, 400), starts, ends, 30, {indices.data(), 33}, options);
    EXPECT_OK(riffle_topk_per_row(&matrix, starts.data(), ends.data(), 30, c_indices.data(), 33,
                                  &c_options));
    EXPECT_EQ(indices, c_indices);
    TopKPerRowDecode(View(x.data(), 6, 400), seq_lens, 2, 30, {indices.data(), 33}, options);
    EXPECT_OK(riffle_topk_per_row_decode(&matrix, seq_lens.data(), 2, 30, c_indices.data(), 33,
                                         &c_options));
    EXPECT_EQ(indices, c_indices);
  }
}

TEST(CApiParity, LinearOfEveryFormat) {
  constexpr int64_t kRows = 3, kVocab = 4000, kDim = 96;
  const std::vector<float> x = Normal(kRows * kDim, 3), bias = Normal(kVocab, 4);
  std::vector<uint8_t> memory = Bytes(kVocab * kDim * 4, 5);
  for (int format = 0; format <= RIFFLE_WEIGHT_Q8_0; ++format) {
    WeightView weight = {memory.data(), static_cast<WeightFormat>(format), kVocab, kDim, kDim, 1};
    if (format == RIFFLE_WEIGHT_Q8_0) {
      weight.row_stride = kDim / kQ8Block;
      for (int64_t block = 0; block < kVocab * kDim / kQ8Block; ++block) {
        memory[block * kQ8BlockBytes + 1] = 0x20;  // scales near 0.01
      }
    } else if (format == RIFFLE_WEIGHT_F32) {
      const std::vector<float> numbers = Normal(kVocab * kDim, 6);
      std::memcpy(memory.data(), numbers.data(), memory.size());
    }
    LinearOptions options;
    options.bias = {bias.data(), DType::kF32, kVocab};
    options.round_x = format >= RIFFLE_WEIGHT_BF16;
    riffle_linear_options c_options = {};
    c_options.size = sizeof(c_options);
    c_options.bias = bias.data();
    c_options.round_x = options.round_x ? 1 : 0;
    const riffle_weights c_weight = {memory.data(), kVocab, kDim, weight.row_stride, 1, format, 0};
    const riffle_matrix matrix = ToC(View(x.data(), kRows, kDim));
    std::vector<float> y(kRows * kVocab), c_y(kRows * kVocab);
    Linear(View(x.data(), kRows, kDim), weight, {y.data(), kVocab}, options);
    EXPECT_OK(riffle_linear(&matrix, &c_weight, c_y.data(), kVocab, &c_options));
    EXPECT_EQ(std::memcmp(y.data(), c_y.data(), y.size() * 4), 0);
    std::vector<float> values(kRows * 10), c_values(kRows * 10);
    std::vector<int64_t> indices(kRows * 10), c_indices(kRows * 10);
    LinearTopK(View(x.data(), kRows, kDim), weight, 10,
               {values.data(), 10, indices.data(), 10, IndexType::kInt64}, options);
    const riffle_linear_topk_out out = {sizeof(out), c_values.data(),  10, c_indices.data(),
                                        10,          RIFFLE_INDEX_I64, 0};
    EXPECT_OK(riffle_linear_topk(&matrix, &c_weight, 10, &out, &c_options));
    EXPECT_EQ(std::memcmp(values.data(), c_values.data(), values.size() * 4), 0);
    EXPECT_EQ(indices, c_indices);
  }
}

TEST(CApiParity, Sample) {
  const std::vector<float> logits = Normal(4 * 1000, 7);
  const std::vector<float> temperature = {0, 0.5f, 1, 2}, top_p = {0.9f}, min_p = {0.01f};
  const std::vector<int32_t> top_k = {0, 5, 100, 1000};
  const std::vector<int64_t> stream = {11, 12, 13, 14}, position = {3, 4, 5, 6};
  std::vector<int32_t> tokens(4), c_tokens(4);
  std::vector<float> logprobs(4), c_logprobs(4);
  SampleOptions options;
  options.temperature = temperature;
  options.top_k = top_k;
  options.top_p = top_p;
  options.min_p = min_p;
  options.seed = 99;
  options.stream = stream;
  options.position = position;
  const std::vector<uint64_t> seeds = {5, 6, 7, 8};
  const std::vector<float> repetition = {1.5f}, frequency = {0.5f};
  const std::vector<int32_t> output = {1, 1, 9};
  const std::vector<int64_t> offsets = {0, 2, 2, 3, 3};
  options.seeds = seeds;
  options.repetition_penalty = repetition;
  options.frequency_penalty = frequency;
  options.output_tokens = {output, offsets};
  riffle_sample_options c_options = {};
  c_options.seeds = {seeds.data(), 4};
  c_options.repetition_penalty = {repetition.data(), 1};
  c_options.frequency_penalty = {frequency.data(), 1};
  c_options.output_tokens = {{output.data(), 3}, {offsets.data(), 5}};
  c_options.size = sizeof(c_options);
  c_options.temperature = {temperature.data(), 4};
  c_options.top_k = {top_k.data(), 4};
  c_options.top_p = {top_p.data(), 1};
  c_options.min_p = {min_p.data(), 1};
  c_options.seed = 99;
  c_options.stream = {stream.data(), 4};
  c_options.position = {position.data(), 4};
  Sample(View(logits.data(), 4, 1000), tokens, logprobs, options);
  const riffle_matrix matrix = ToC(View(logits.data(), 4, 1000));
  EXPECT_OK(riffle_sample(&matrix, c_tokens.data(), c_logprobs.data(), &c_options));
  EXPECT_EQ(tokens, c_tokens);
  EXPECT_EQ(logprobs, c_logprobs);
  Sample(View(logits.data(), 4, 1000), tokens);
  EXPECT_OK(riffle_sample(&matrix, c_tokens.data(), nullptr, nullptr));
  EXPECT_EQ(tokens, c_tokens);
}

class Attention {
 public:
  explicit Attention(const AttentionSpec& spec)
      : case_(spec),
        heads_(case_.heads()),
        dim_(ValueDim(spec)),
        element_(static_cast<int64_t>(SizeOf(spec.q_dtype))) {
    options_ = case_.options();
  }

  AttentionOptions& options() { return options_; }
  int tokens() const { return case_.tokens(); }
  int heads() const { return case_.heads(); }

  void Compare() {
    std::vector<uint8_t> out(case_.tokens() * heads_ * dim_ * element_, 0xaa), c_out = out,
                                                                               planned = out;
    std::vector<float> lse(case_.tokens() * heads_), c_lse = lse, planned_lse = lse;
    PagedAttention(case_.q(), case_.keys(), case_.values(), case_.batch(),
                   {out.data(), heads_ * dim_, dim_, lse.data(), heads_}, options_);
    const riffle_heads q = ToC(case_.q());
    const riffle_paged_kv keys = ToC(case_.keys()), values = ToC(case_.values());
    const riffle_paged_batch batch = ToC(case_.batch());
    const riffle_attention_options options = ToC(options_);
    EXPECT_OK(Call(q, keys, values, batch, options, c_out, c_lse));
    EXPECT_EQ(out, c_out);
    EXPECT_EQ(std::memcmp(lse.data(), c_lse.data(), lse.size() * 4), 0);
    riffle_attention_plan* plan = nullptr;
    EXPECT_OK(riffle_attention_plan_create(&q, &keys, &batch, &options, &plan));
    EXPECT_OK(riffle_attention_plan_make(plan, &q, &keys, &batch, &options));
    const riffle_attention_out results = Results(planned, planned_lse);
    EXPECT_OK(riffle_planned_attention(&q, &keys, &values, plan, &results, &options));
    riffle_attention_plan_destroy(plan);
    EXPECT_EQ(out, planned);
    EXPECT_EQ(std::memcmp(lse.data(), planned_lse.data(), lse.size() * 4), 0);
  }

 private:
  riffle_attention_out Results(std::vector<uint8_t>& out, std::vector<float>& lse) const {
    return {sizeof(riffle_attention_out), out.data(), heads_ * dim_, dim_, lse.data(), heads_};
  }
  riffle_status Call(const riffle_heads& q, const riffle_paged_kv& keys,
                     const riffle_paged_kv& values, const riffle_paged_batch& batch,
                     const riffle_attention_options& options, std::vector<uint8_t>& out,
                     std::vector<float>& lse) const {
    const riffle_attention_out results = Results(out, lse);
    return riffle_paged_attention(&q, &keys, &values, &batch, &results, &options);
  }

  AttentionCase case_;
  int64_t heads_, dim_, element_;
  AttentionOptions options_;
};

TEST(CApiParity, AttentionOfEveryFormat) {
  for (int format = 0; format < kNumKvFormats; ++format) {
    AttentionSpec spec;
    spec.q_lens = {1, 5, 0};
    spec.kv_lens = {100, 33, 20};
    spec.keys = KvCoding{.dtype = format == RIFFLE_KV_PLAIN ? DType::kF16 : DType::kU8,
                         .format = static_cast<KvFormat>(format)};
    spec.sinks = format % 2 == 0;
    Attention attention(spec);
    attention.Compare();
    attention.options().bf16_products = true;
    attention.Compare();
  }
  for (const bool int8 : {false, true}) {
    AttentionSpec spec;
    spec.q_dtype = DType::kBF16;
    spec.int8 = int8;
    spec.layout = Layout::kNHD;
    Attention(spec).Compare();
  }
}

TEST(CApiParity, AttentionWithEveryOption) {
  AttentionSpec spec;
  spec.q_lens = {3, 8};
  spec.kv_lens = {70, 130};
  spec.scale = 0.3f;
  spec.soft_cap = 20.0f;
  spec.sinks = true;
  spec.window = 50;
  Attention causal(spec);
  causal.Compare();
  spec.causal = false;
  spec.window_right = 3;
  Attention two_sided(spec);
  const std::vector<float> slopes = Normal(two_sided.heads(), 8);
  const std::vector<float> added = Normal(two_sided.tokens() * 130, 9);
  two_sided.options().alibi_slopes = slopes;
  two_sided.options().mask = {added.data(), DType::kF32, two_sided.tokens(), 1, 130, 130, 0, 1};
  two_sided.Compare();
}

TEST(CApiParity, MergeStates) {
  const std::vector<float> a = Normal(2 * 4 * 32, 10), b = Normal(2 * 4 * 32, 11);
  const std::vector<float> lse_a = Normal(8, 12), lse_b = Normal(8, 13);
  const HeadsView view_a = {a.data(), DType::kF32, 2, 4, 32, 128, 32};
  HeadsView view_b = view_a;
  view_b.data = b.data();
  std::vector<float> out(256), c_out(256), lse(8), c_lse(8);
  const AttentionPart parts[] = {{view_a, lse_a.data(), 4}, {view_b, lse_b.data(), 4}};
  MergeStates(parts, {out.data(), 128, 32, lse.data(), 4});
  const riffle_attention_part c_parts[] = {{ToC(view_a), lse_a.data(), 4},
                                           {ToC(view_b), lse_b.data(), 4}};
  const riffle_attention_out results = {sizeof(results), c_out.data(), 128, 32, c_lse.data(), 4};
  EXPECT_OK(riffle_merge_states(c_parts, 2, &results, nullptr));
  EXPECT_EQ(out, c_out);
  EXPECT_EQ(lse, c_lse);
}

// Memory of a pool, and of the scales that a call makes, as it is now; puts it back on request.
class Snapshot {
 public:
  explicit Snapshot(const PagedKvOut& pages) {
    Keep(pages.data,
         pages.num_pages * pages.page_stride * static_cast<int64_t>(SizeOf(pages.dtype)));
    if (pages.computed_scales != nullptr) {
      Keep(pages.computed_scales, pages.num_pages * pages.scales.page_stride *
                                      static_cast<int64_t>(SizeOf(pages.scales.dtype)));
    }
  }
  void Restore() const {
    for (const auto& [data, bytes] : kept_) {
      std::memcpy(data, bytes.data(), bytes.size());
    }
  }

 private:
  void Keep(void* data, int64_t size) {
    const auto* bytes = static_cast<const uint8_t*>(data);
    kept_.emplace_back(data, std::vector<uint8_t>(bytes, bytes + size));
  }
  std::vector<std::pair<void*, std::vector<uint8_t>>> kept_;
};

// Against the reference of WriteKv's own tests, which Run puts beside the pools.
TEST(CApiParity, WriteKv) {
  for (const bool wide : {false, true}) {
    WriteSpec spec;
    spec.slots = {3, -1, 0, 19, 3, 8, 7};
    spec.keys.dtype = DType::kI8;
    spec.keys.scales = ScaleKind::kGrouped;
    spec.keys.compute = true;
    spec.values.format = KvFormat::kQ4_0;
    WriteCase write(spec);
    const PagedKvOut key_out = write.key_pages(), value_out = write.value_pages();
    const Snapshot key_memory(key_out), value_memory(value_out);
    ASSERT_EQ(write.Run(), "");
    key_memory.Restore();
    value_memory.Restore();
    ASSERT_NE(write.Difference(), "");
    PagedKv key_view = key_out;
    key_view.scales = key_out.scales;
    const riffle_heads keys = ToC(write.keys()), values = ToC(write.values());
    const riffle_paged_kv key_pages = ToC(key_view), value_pages = ToC(value_out);
    riffle_write_kv_options options = {};
    options.size = sizeof(options);
    options.key_computed_scales = key_out.computed_scales;
    const std::vector<int32_t> narrow(spec.slots.begin(), spec.slots.end());
    const void* slots = wide ? static_cast<const void*>(spec.slots.data()) : narrow.data();
    EXPECT_OK(riffle_write_kv(&keys, &values, slots, wide ? RIFFLE_INDEX_I64 : RIFFLE_INDEX_I32,
                              &key_pages, &value_pages, &options));
    EXPECT_EQ(write.Difference(), "");
  }
}

}  // namespace
}  // namespace riffle::test
