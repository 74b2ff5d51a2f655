#include "cli/bench_cases.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <memory>
#include <optional>
#include <utility>

#include "cli/failure.h"
#include "cli/huge_buffer.h"
#include "cli/reference.h"

namespace riffle::cli {
namespace {

constexpr int64_t kVocab = 201088;  // rows as in the published results of the TPU kernel
constexpr int64_t kRows = 32;
constexpr int64_t kPerRowVocab = 129280;  // rows as in FlagGems' and vLLM's benchmarks
constexpr int64_t kPerRowK = 1024;

BenchSection Main(bool quick) {
  BenchSection section{"Whole rows, and ranges of rows", {}, false};
  for (const DType dtype : {DType::kBF16, DType::kF32, DType::kF16}) {
    section.cases.push_back({fmt::format("rows32-{}", ShortName(dtype)), dtype, kRows, kVocab, 64});
  }
  for (const int64_t k : {1, 64}) {  // 4 KiB pages, as NumPy's arrays have, and 2 MiB pages
    for (const PageKind pages : {PageKind::kOrdinary, PageKind::kHuge}) {
      BenchCase what{fmt::format("pages-{}-k{}-bf16", pages == PageKind::kHuge ? "2m" : "4k", k),
                     DType::kBF16, kRows, kVocab, k};
      what.page_kind = pages;
      section.cases.push_back(what);
    }
  }
  if (!quick) {
    section.cases.push_back({"rows2048-bf16", DType::kBF16, 2048, kVocab, 64});
  }
  for (const int64_t rows : {kRows, int64_t{1}}) {
    BenchCase per_row{fmt::format("per-row-{}", rows), DType::kF32, rows, kPerRowVocab, kPerRowK};
    per_row.per_row = true;
    section.cases.push_back(per_row);
  }
  return section;
}

BenchSection Distributions() {
  BenchSection section{"The same time in any order of the data", {}, true};
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    for (const auto& [distribution, name] : kTimedDistributions) {
      section.cases.push_back(
          {fmt::format("{}-{}", ShortName(dtype), name), dtype, kRows, kVocab, 64, distribution});
    }
  }
  return section;
}

BenchSection Ks() {
  BenchSection section{"k", {}, false};
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    for (const int64_t k : {1, 8, 64, 256, 1024, 4096}) {
      section.cases.push_back(
          {fmt::format("{}-k{}", ShortName(dtype), k), dtype, kRows, kVocab, k});
    }
  }
  return section;
}

BenchSection ElementTypes() {
  BenchSection section{"Element types", {}, false};
  for (const DType dtype :
       {DType::kBF16, DType::kF32, DType::kF64, DType::kI8, DType::kU8, DType::kI16, DType::kU16,
        DType::kI32, DType::kU32, DType::kI64, DType::kU64}) {
    section.cases.push_back({fmt::format("type-{}", Name(dtype)), dtype, kRows, kVocab, 64});
  }
  return section;
}

BenchSection Algorithms() {
  BenchSection section{"Bucket maxima and lane sort", {}, false};
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    for (const int64_t k : {8, 64}) {
      for (const Algorithm algorithm : {Algorithm::kBucketMaxima, Algorithm::kLaneSort}) {
        section.cases.push_back(
            {fmt::format("{}-k{}-{}", ShortName(dtype), k,
                         algorithm == Algorithm::kLaneSort ? "lane-sort" : "bucket-maxima"),
             dtype, kRows, kVocab, k, Distribution::kNormal, algorithm});
      }
    }
  }
  return section;
}

// Memory that holds the matrices of one shape, one at a time. On a virtual machine, whose cache is
// shared with others, the same call can take twice as long at another address, so orders of the
// data are only comparable at the same address.
struct Workspace {
  HugeBuffer buffer;
  std::optional<Distribution> holds;
};

// A matrix with its answers, shared by the cases that differ only in what is done with it.
struct Matrix {
  std::shared_ptr<Workspace> workspace;
  MatrixView view;  // in the workspace
  Distribution distribution = Distribution::kNormal;
  HugeBuffer source;  // copied into the workspace; empty: the matrix stays there
  int64_t reference_k = 0;
  std::vector<int32_t> reference;  // [rows, reference_k]
  PageKind page_kind = PageKind::kHuge;
  std::string pages;

  bool HasShape(const BenchCase& what) const {
    return view.dtype == what.dtype && view.rows == what.rows && view.cols == what.n &&
           page_kind == what.page_kind;
  }
  bool Serves(const BenchCase& what) const {
    return HasShape(what) && distribution == what.distribution;
  }
  size_t bytes() const { return workspace->buffer.bytes(); }
  void Load() const {
    if (workspace->holds != distribution) {
      std::memcpy(workspace->buffer.data(), source.data(), bytes());
      workspace->holds = distribution;
    }
  }
};

Matrix MakeMatrix(const BenchCase& what, std::shared_ptr<Workspace> workspace, bool keep_source) {
  if (workspace == nullptr) {
    workspace = std::make_shared<Workspace>();
    workspace->buffer =
        HugeBuffer(static_cast<size_t>(what.rows * what.n) * SizeOf(what.dtype), what.page_kind);
  }
  Matrix matrix;
  matrix.page_kind = what.page_kind;
  matrix.workspace = workspace;
  matrix.view = {workspace->buffer.data(), what.dtype, what.rows, what.n, what.n};
  matrix.distribution = what.distribution;
  Fill(what.distribution, what.dtype, what.rows, what.n, what.k, workspace->buffer.data());
  workspace->holds = what.distribution;
  if (keep_source) {
    matrix.source = HugeBuffer(matrix.bytes());
    std::memcpy(matrix.source.data(), workspace->buffer.data(), matrix.bytes());
  }
  matrix.pages = PagesOf(workspace->buffer.data(), matrix.bytes());
  return matrix;
}

// A case that is ready to be called, with results of its own.
class Call {
 public:
  Call(const BenchCase& what, const MatrixView& x, ThreadPool* pool) : what_(what), x_(x) {
    options_.algorithm = what.algorithm;
    options_.pool = pool;
    values_.resize(static_cast<size_t>(what.rows * what.k) * SizeOf(what.dtype));
    indices_.resize(static_cast<size_t>(what.rows * what.k));
    starts_.assign(static_cast<size_t>(what.rows), 0);
    ends_.assign(static_cast<size_t>(what.rows), static_cast<int32_t>(what.n));
  }

  void Run() {
    if (what_.per_row) {
      TopKPerRow(x_, starts_, ends_, what_.k, {indices_.data(), what_.k}, options_);
    } else {
      TopK(x_, what_.k, View(values_.data(), indices_.data(), what_.k), options_);
    }
  }

  void Check(const Matrix& matrix) {
    Run();
    const std::string wrong = Compare(x_, what_.k, matrix.reference, matrix.reference_k, indices_,
                                      what_.per_row ? nullptr : values_.data());
    if (!wrong.empty()) {
      FailRun("wrong answer, not timed: {}: {}", what_.name, wrong);
    }
  }

 private:
  BenchCase what_;
  MatrixView x_;
  TopKOptions options_;
  std::vector<uint8_t> values_;
  std::vector<int32_t> indices_;
  std::vector<int32_t> starts_;
  std::vector<int32_t> ends_;
};

// The matrices of a section, each with the answers to its largest k.
std::vector<Matrix> MakeMatrices(const BenchSection& section,
                                 const std::function<void(const std::string&)>& progress) {
  std::vector<Matrix> matrices;
  for (const BenchCase& what : section.cases) {
    auto place = std::find_if(matrices.begin(), matrices.end(),
                              [&](const Matrix& matrix) { return matrix.Serves(what); });
    if (place == matrices.end()) {
      progress("data of " + what.name);
      const auto same_shape =
          std::find_if(matrices.begin(), matrices.end(),
                       [&](const Matrix& matrix) { return matrix.HasShape(what); });
      // Several orders of data share a shape only in sections with ratios.
      matrices.push_back(MakeMatrix(what,
                                    same_shape == matrices.end() ? nullptr : same_shape->workspace,
                                    /*keep_source=*/section.ratios));
      place = matrices.end() - 1;
    }
    place->reference_k = std::max(place->reference_k, what.k);
  }
  for (Matrix& matrix : matrices) {
    progress(fmt::format("the reference's answers, {} {} x {}", NameOf(matrix.distribution),
                         matrix.view.rows, matrix.view.cols));
    matrix.Load();
    matrix.reference = ReferenceTopK(matrix.view, matrix.reference_k);
  }
  return matrices;
}

void SetRatios(std::vector<BenchLine>& lines) {
  for (BenchLine& line : lines) {
    for (const BenchLine& other : lines) {
      if (other.what.distribution == Distribution::kNormal && other.what.dtype == line.what.dtype) {
        line.ratio = line.time.median / other.time.median;
      }
    }
  }
}

}  // namespace

const char* ShortName(DType dtype) {
  constexpr const char* kNames[kNumTopKDTypes] = {"f32", "f16", "bf16", "f64", "i8",  "u8",
                                                  "i16", "u16", "i32",  "u32", "i64", "u64"};
  return kNames[static_cast<int>(dtype)];
}

std::vector<BenchSection> BenchSections(bool quick) {
  return {Main(quick), ElementTypes(), Distributions(), Ks(), Algorithms()};
}

std::vector<BenchSection> Select(const std::vector<BenchSection>& sections,
                                 const std::string& part) {
  const auto matches = [&](const BenchCase& what) {
    return what.name.find(part) != std::string::npos;
  };
  std::vector<BenchSection> selected;
  for (BenchSection section : sections) {
    const std::vector<BenchCase> all = section.cases;
    std::erase_if(section.cases, [&](const BenchCase& what) {
      const bool is_base = section.ratios && what.distribution == Distribution::kNormal &&
                           std::any_of(all.begin(), all.end(), [&](const BenchCase& other) {
                             return other.dtype == what.dtype && matches(other);
                           });
      return !matches(what) && !is_base;
    });
    if (!section.cases.empty()) {
      selected.push_back(std::move(section));
    }
  }
  return selected;
}

std::vector<BenchLine> RunSection(const BenchSection& section, double min_seconds, ThreadPool* pool,
                                  const std::function<void(const std::string&)>& progress) {
  const std::vector<Matrix> matrices = MakeMatrices(section, progress);
  std::vector<std::unique_ptr<Call>> calls;
  std::vector<Group> groups;
  std::vector<BenchLine> lines;
  volatile uint8_t sink;
  for (const BenchCase& what : section.cases) {
    progress("checking " + what.name);
    const Matrix& matrix = *std::find_if(matrices.begin(), matrices.end(),
                                         [&](const Matrix& m) { return m.Serves(what); });
    matrix.Load();
    calls.push_back(std::make_unique<Call>(what, matrix.view, pool));
    calls.back()->Check(matrix);
    // A separate read for each call, so that it finds the caches as that call leaves them.
    const auto read = [&matrix, &sink, pool] {
      sink = ReadMax(matrix.view.data, matrix.bytes(), {.pool = pool});
    };
    groups.push_back(
        {{read, [call = calls.back().get()] { call->Run(); }}, [&matrix] { matrix.Load(); }});
    lines.push_back(
        {what, static_cast<double>(matrix.bytes()), matrix.pages, Timing{}, Timing{}, 0});
  }
  const auto timings = Measure(
      groups, min_seconds, [&](double done) { progress(fmt::format("{:3.0f} %", 100 * done)); });
  for (size_t i = 0; i < lines.size(); ++i) {
    lines[i].read = timings[i][0];
    lines[i].time = timings[i][1];
  }
  if (section.ratios) {
    SetRatios(lines);
  }
  return lines;
}

}  // namespace riffle::cli
