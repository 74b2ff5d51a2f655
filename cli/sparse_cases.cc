#include "cli/sparse_cases.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "cli/reference.h"
#include "cli/sparse_data.h"
#include "testing/kv_codes.h"

namespace riffle::cli {
namespace {

// Not DeepSeek-V3.2's 192^-1/2, with which random rows would have logits in the hundreds.
constexpr float kScale = 0.02f;
constexpr int64_t kValueDim = 512;

class Work {
 public:
  Work(const SparseCase& what, ThreadPool* pool) : what_(what), data_(what), pool_(pool) {
    const auto queries = static_cast<size_t>(what.queries);
    if (what.needs_keys()) {
      logits_.resize(queries * static_cast<size_t>(what.context));
      selected_.resize(queries * static_cast<size_t>(Named()));
    }
    out_.resize(queries * static_cast<size_t>(what.heads * kValueDim));
  }

  void Run() {
    switch (what_.work) {
      case SparseWork::kLogits:
        return Logits();
      case SparseWork::kTopK:
        return TopK(/*slots=*/false);
      case SparseWork::kAttend:
        return Attend(data_.slots.data());
      case SparseWork::kStep:
        TopK(/*slots=*/true);
        return Attend(selected_.data());
      default:
        return Dense();
    }
  }

  // Throws unless a sample of the answer is right.
  void Check() {
    if (what_.needs_keys()) {
      Logits();
      CheckLogits();
    }
    Run();
    if (what_.work == SparseWork::kTopK || what_.work == SparseWork::kStep) {
      CheckSelection();
    }
    if (what_.needs_rows()) {
      CheckAttention();
    }
  }

  const SparseData& data() const { return data_; }

 private:
  int64_t Named() const { return std::min(what_.k, what_.context); }

  void Logits() {
    IndexerLogits(data_.index_queries(), Weights(), data_.keys(), data_.batch(),
                  {logits_.data(), what_.context, what_.context}, {.pool = pool_});
  }

  void TopK(bool slots) {
    IndexTopKOptions options;
    options.slots = slots;
    options.pool = pool_;
    IndexerTopK(data_.index_queries(), Weights(), data_.keys(), data_.batch(), Named(),
                {selected_.data(), Named()}, options);
  }

  void Attend(const int32_t* slots) {
    SparseAttentionOptions options;
    options.scale = kScale;
    options.value_dim = kValueDim;
    options.pool = pool_;
    SparseAttention(data_.queries(), data_.scopes(slots),
                    {out_.data(), what_.heads * kValueDim, kValueDim}, options);
  }

  void Dense() {
    PagedKv keys{data_.rows_memory.data(),
                 DType::kBF16,
                 data_.pages,
                 SparseData::kPageSize,
                 1,
                 576,
                 SparseData::kPageSize * 576,
                 576,
                 0};
    PagedKv values = keys;
    values.head_dim = kValueDim;
    AttentionOptions options;
    options.scale = kScale;
    options.pool = pool_;
    PagedAttention(data_.queries(), keys, values, data_.batch(),
                   {out_.data(), what_.heads * kValueDim, kValueDim}, options);
  }

  IndexWeights Weights() const { return {data_.weights.data(), SparseData::kIndexHeads}; }

  void CheckLogits() const {
    const int64_t query = what_.queries - 1;
    for (int64_t i = 0; i < 64; ++i) {
      const int64_t position = i == 0 ? what_.context - 1 : i * 7919 % what_.context;
      double want = 0;
      double size = 0;
      for (int64_t h = 0; h < SparseData::kIndexHeads; ++h) {
        double dot = 0;
        double absolute = 0;
        for (int64_t c = 0; c < SparseData::kIndexDim; ++c) {
          const double product =
              data_.IndexQuery(query, h, c) * data_.IndexElement(data_.Slot(position), c);
          dot += product;
          absolute += std::fabs(product);
        }
        const double weight =
            data_.weights[static_cast<size_t>(query * SparseData::kIndexHeads + h)];
        want += weight * std::max(0.0, dot);
        size += weight * absolute;
      }
      const float got = logits_[static_cast<size_t>(query * what_.context + position)];
      // int8 rounds q to 1/254 of its largest element.
      if (!(std::fabs(got - want) <= (what_.int8_keys ? 8e-3 : 1e-5) * size)) {
        throw std::runtime_error(fmt::format("{}: the score of position {} is {}, not {}",
                                             what_.name, position, got, want));
      }
    }
  }

  void CheckSelection() const {
    std::vector<int32_t> reference = ReferenceTopK(
        {logits_.data(), DType::kF32, what_.queries, what_.context, what_.context}, Named());
    if (Named() == what_.context) {  // all positions are selected, in order, without scores
      for (size_t i = 0; i < reference.size(); ++i) {
        reference[i] = static_cast<int32_t>(i);
      }
    }
    for (size_t i = 0; i < reference.size(); ++i) {
      const int64_t want =
          what_.work == SparseWork::kStep ? data_.Slot(reference[i]) : reference[i];
      if (selected_[i] != want) {
        throw std::runtime_error(
            fmt::format("{}: selection {} is {}, not {}", what_.name, i, selected_[i], want));
      }
    }
  }

  void CheckAttention() const {
    const int64_t query = what_.queries - 1;
    std::vector<int64_t> rows;
    if (what_.work == SparseWork::kDense) {
      for (int64_t i = 0; i < what_.context; ++i) rows.push_back(data_.Slot(i));
    } else {
      const std::vector<int32_t>& slots = what_.work == SparseWork::kStep ? selected_ : data_.slots;
      rows.assign(slots.end() - Named(), slots.end());
      rows.insert(rows.end(), data_.window_slots.end() - what_.window, data_.window_slots.end());
    }
    for (const int64_t head : {int64_t{0}, what_.heads - 1}) {
      CheckHead(query, head, rows);
    }
  }

  void CheckHead(int64_t query, int64_t head, const std::vector<int64_t>& rows) const {
    std::vector<double> p;
    for (const int64_t row : rows) {
      double dot = 0;
      for (int64_t i = 0; i < what_.row_dim(); ++i) {
        dot += data_.Query(query, head, i) * data_.Row(row, i);
      }
      p.push_back(double{kScale} * dot);
    }
    const double largest = *std::max_element(p.begin(), p.end());
    double weight = 0;
    for (double& x : p) {
      weight += x = std::exp(x - largest);
    }
    for (int64_t i = 0; i < kValueDim; i += 37) {
      double want = 0;
      for (size_t r = 0; r < rows.size(); ++r) {
        want += p[r] / weight * data_.Row(rows[r], i);
      }
      const double got = test::DecodeElement(
          {.dtype = DType::kBF16},
          reinterpret_cast<const uint8_t*>(
              &out_[static_cast<size_t>((query * what_.heads + head) * kValueDim + i)]),
          0);
      if (!(std::fabs(got - want) <= 0.03)) {
        throw std::runtime_error(
            fmt::format("{}: element {} of head {} is {}, not {}", what_.name, i, head, got, want));
      }
    }
  }

  const SparseCase& what_;
  const SparseData data_;
  ThreadPool* const pool_;
  std::vector<float> logits_;
  std::vector<int32_t> selected_;
  std::vector<uint16_t> out_;
};

}  // namespace

double SparseCase::operations() const {
  const auto named = static_cast<double>(
      queries * (work == SparseWork::kDense ? context : std::min(k, context) + window));
  switch (work) {
    case SparseWork::kLogits:
    case SparseWork::kTopK:
      return 2.0 * SparseData::kIndexHeads * SparseData::kIndexDim *
             static_cast<double>(queries * context - queries * (queries - 1) / 2);
    case SparseWork::kStep:
      return 0;
    default:
      return 2.0 * static_cast<double>(heads * (row_dim() + kValueDim)) * named;
  }
}

double SparseCase::bytes() const {
  const auto keys = static_cast<double>(context * (SparseData::kIndexDim + 4));
  const double row = rows == SparseRowFormat::kPlain    ? 1152
                     : rows == SparseRowFormat::kMla656 ? 656
                                                        : 584;
  const auto named = static_cast<double>(
      work == SparseWork::kDense ? context : queries * (std::min(k, context) + window));
  return (needs_keys() ? keys : 0) + (needs_rows() ? named * row : 0);
}

std::vector<SparseCase> SparseCases(bool quick) {
  std::vector<SparseCase> cases;
  for (const bool int8 : {true, false}) {
    for (const SparseWork work : {SparseWork::kLogits, SparseWork::kTopK}) {
      for (const bool many : {true, false}) {
        cases.push_back(
            {.name = fmt::format("{}-{}-{}", work == SparseWork::kLogits ? "scores" : "topk",
                                 int8 ? "int8" : "e4m3", many ? "32" : "1"),
             .work = work,
             .queries = many ? 32 : 1,
             .context = many ? 32768 : 131072,
             .int8_keys = int8});
      }
    }
  }
  for (const int64_t queries : {32, 1}) {
    cases.push_back({.name = fmt::format("v32-bf16-{}", queries), .queries = queries});
    cases.push_back({.name = fmt::format("v32-fp8-{}", queries),
                     .queries = queries,
                     .rows = SparseRowFormat::kMla656});
    cases.push_back({.name = fmt::format("v4-fp8-{}", queries),
                     .queries = queries,
                     .window = 128,
                     .k = 1024,
                     .rows = SparseRowFormat::kMla584});
  }
  for (const int64_t thousands : {4, 8, 16, 32, 64, 128, 256, 512, 1024}) {
    if (!quick || thousands <= 128) {
      for (const bool dense : {true, false}) {
        cases.push_back({.name = fmt::format("{}-{}k", dense ? "dense" : "step", thousands),
                         .work = dense ? SparseWork::kDense : SparseWork::kStep,
                         .context = thousands * 1024});
      }
    }
  }
  return cases;
}

RooflineLine RunSparseCase(const SparseCase& what, double min_seconds, ThreadPool* pool) {
  Work work(what, pool);
  work.Check();
  const HugeBuffer& memory = what.needs_rows() ? work.data().rows_memory : work.data().keys_memory;
  RooflineCase roofline;
  roofline.name = what.name;
  roofline.pages = PagesOf(memory.data(), memory.bytes());
  roofline.bytes = what.bytes();
  roofline.operations = what.operations();
  roofline.call = [&] { work.Run(); };
  return MeasureRoofline(roofline, min_seconds, pool);
}

}  // namespace riffle::cli
