#include "testing/topk_check.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <sstream>
#include <tuple>

#include "riffle/error.h"
#include "testing/reference.h"
#include "testing/targets.h"
#include "testing/text.h"

namespace riffle::test {
namespace {

const char* Name(Algorithm algorithm) {
  return algorithm == Algorithm::kAuto           ? "auto"
         : algorithm == Algorithm::kBucketMaxima ? "bucket_maxima"
                                                 : "lane_sort";
}

template <typename T>
std::string Join(const std::vector<T>& list) {
  std::ostringstream text;
  for (size_t i = 0; i < list.size(); ++i) {
    text << (i == 0 ? "" : ",") << list[i];
  }
  return text.str();
}

// The id of a column; the column itself if the call has no ids.
int64_t IdOf(const Call& call, int64_t row, int64_t column) {
  return call.ids == Call::Ids::kNone     ? column
         : call.ids == Call::Ids::kShared ? 3 * column - 40
                                          : 1000 * row - 3 * column;
}

// Payload ids [rows, n], or [1, n] if all rows share them.
template <typename T>
std::vector<T> MakeIds(const MatrixView& x, const Call& call) {
  std::vector<T> ids;
  for (int64_t row = 0; row < (call.ids == Call::Ids::kPerRow ? x.rows : 1); ++row) {
    for (int64_t column = 0; column < x.cols; ++column) {
      ids.push_back(static_cast<T>(IdOf(call, row, column)));
    }
  }
  return ids;
}

uint64_t Padding(DType dtype, bool largest) {
  const uint64_t ones = ~uint64_t{0} >> (64 - 8 * SizeOf(dtype));
  const uint64_t sign = ones ^ ones >> 1;
  switch (dtype) {
    case DType::kF32:
    case DType::kF16:
    case DType::kBF16:
      return largest ? MinusInf(dtype) : PlusInf(dtype);
    case DType::kF64:
      return std::bit_cast<uint64_t>(largest ? -HUGE_VAL : HUGE_VAL);
    case DType::kU8:
    case DType::kU16:
    case DType::kU32:
    case DType::kU64:
      return largest ? 0 : ones;
    default:
      return largest ? sign : ones ^ sign;
  }
}

// The outputs of a call.
struct Outputs {
  Output values;
  Output indices;

  Outputs(const MatrixView& x, const Call& call)
      : values(x.rows, call.MaxK(), call.MaxK() + call.values_gap, SizeOf(x.dtype),
               call.values_shift),
        indices(x.rows, call.MaxK(), call.MaxK() + call.indices_gap,
                call.wide ? sizeof(int64_t) : sizeof(int32_t), call.indices_shift) {}

  int32_t Index(int64_t row, int64_t col) {
    int32_t index;
    std::memcpy(&index, indices.cell(row, col), sizeof(index));
    return index;
  }
  void Expect(const MatrixView& x, const Call& call, int64_t row, int64_t col, int32_t column) {
    const int64_t wide = column < 0 ? column : IdOf(call, row, column);
    indices.Expect(row, col, &wide);  // little endian: the low half is first
    if (column >= 0) {
      values.Expect(row, col, ElementAt(x, row, column));
    } else {
      const uint64_t padding = Padding(x.dtype, call.largest);
      values.Expect(row, col, &padding);  // little endian: the low half is first
    }
  }
};

std::string ExpectRow(const MatrixView& x, int64_t row, const std::vector<int32_t>& best,
                      const Call& call, Outputs& outputs) {
  std::string fault;
  const std::vector<int32_t> answer =
      RowAnswer(outputs.indices, row, best, call.MaxK(), call.sorted, &fault);
  for (int64_t col = 0; col < call.MaxK(); ++col) {
    outputs.Expect(x, call, row, col, answer[static_cast<size_t>(col)]);
  }
  return fault;
}

// PlanTopK takes milliseconds where k is large, and the tests ask for the same shapes over and
// over.
const TopKPlan& Plan(int64_t n, int64_t k, int lanes) {
  static std::map<std::tuple<int64_t, int64_t, int>, TopKPlan> plans;
  auto [at, is_new] = plans.try_emplace({n, k, lanes});
  if (is_new) at->second = PlanTopK(n, k, 1, lanes);
  return at->second;
}

// The depth that lane sort must report: m - 1 for the first depth m of the schedule, and then of
// its last depth doubled again and again, at which no lane holds m of the k best.
int64_t ExpectedDepth(const MatrixView& x, const Call& call, const std::vector<int32_t>& best) {
  std::vector<int> schedule = call.schedule;
  if (schedule.empty()) {
    schedule = Plan(x.cols, call.MaxK(), call.lanes).depth_schedule;
  }
  const int64_t load = MaxLaneLoad(best, call.lanes);
  for (const int depth : schedule) {
    if (depth - 1 >= load) return depth - 1;
  }
  int64_t depth = schedule.back();
  while (depth - 1 < load) depth *= 2;
  return depth - 1;
}

std::string CheckStats(const MatrixView& x, int64_t row, const std::vector<int32_t>& best,
                       const Call& call, const TopKStats& stats) {
  std::ostringstream text;
  const auto kth = static_cast<double>(Exact(x.dtype, ElementAt(x, row, best.back())));
  const double value = stats.kth_value;
  const bool same = std::isnan(kth) ? std::isnan(value) : value == kth;  // -0 equals +0
  if (!same) text << "kth_value = " << value << ", should be " << kth << "; ";
  const int64_t ties = ReferenceTies(x, row, best.back());
  if (stats.ties_at_kth != ties) {
    text << "ties_at_kth = " << stats.ties_at_kth << ", should be " << ties << "; ";
  }
  const Algorithm algorithm = call.algorithm == Algorithm::kAuto
                                  ? Plan(x.cols, call.MaxK(), call.lanes).algorithm
                                  : call.algorithm;
  const int64_t depth = algorithm == Algorithm::kLaneSort ? ExpectedDepth(x, call, best) : 1;
  if (stats.depth != depth) text << "depth = " << stats.depth << ", should be " << depth << "; ";
  if (algorithm == Algorithm::kBucketMaxima) {
    // Only the buckets that may hold winners are read a second time, and nothing is read a third
    // time.
    const auto k = static_cast<int64_t>(best.size());
    const int64_t least = Plan(x.cols, k, 128).buckets > 0 ? k : 0;
    if (stats.elements_examined < least || stats.elements_examined > 2 * x.cols) {
      text << "elements_examined = " << stats.elements_examined << " of " << x.cols << "; ";
    }
  }
  const std::string fault = text.str();
  return fault.empty() ? fault : Concat("row ", row, ": ", fault);
}

}  // namespace

int64_t Call::MaxK() const { return *std::max_element(k.begin(), k.end()); }

std::string Describe(const Call& call) {
  std::ostringstream text;
  text << "k=" << Join(call.k) << ' ' << Name(call.algorithm)
       << (call.sorted ? " sorted" : " unsorted") << (call.largest ? "" : " smallest")
       << (call.wide ? " wide" : "") << " ids=" << static_cast<int>(call.ids)
       << (call.stats ? " stats" : "") << " lanes=" << call.lanes << " schedule=["
       << Join(call.schedule) << "] threads=" << call.threads << " gaps=" << call.values_gap << ','
       << call.indices_gap << " shifts=" << call.values_shift << ',' << call.indices_shift;
  return text.str();
}

std::vector<Algorithm> AlgorithmsFor(DType dtype) {
  if (dtype > DType::kBF16) return {Algorithm::kBucketMaxima};
  return {Algorithm::kBucketMaxima, Algorithm::kLaneSort};
}

Truth::Truth(const MatrixView& x, int64_t k, bool largest) {
  for (int64_t row = 0; row < x.rows; ++row) {
    columns.push_back(ReferenceTopK(x, row, 0, x.cols, k, largest));
  }
}

Outcome CheckTopK(const Input& input, const Truth& truth, const Call& call) {
  const MatrixView& x = input.view();
  Outcome outcome;
  Outputs outputs(x, call);
  outcome.stats.resize(call.stats ? static_cast<size_t>(x.rows) : 0);
  TopKOut out;
  out.values = outputs.values.data();
  out.values_stride = outputs.values.stride();
  out.indices = outputs.indices.data();
  out.index_type = call.wide ? IndexType::kInt64 : IndexType::kInt32;
  out.indices_stride = outputs.indices.stride();
  out.stats = call.stats ? outcome.stats.data() : nullptr;
  TopKOptions options;
  options.algorithm = call.algorithm;
  options.sorted = call.sorted;
  options.largest = call.largest;
  options.lanes = call.lanes;
  options.depth_schedule = call.schedule;
  options.pool = &PoolOf(call.threads);
  std::vector<int64_t> wide_ids;
  std::vector<int32_t> ids;
  if (call.ids != Call::Ids::kNone) {
    if (call.wide) {
      wide_ids = MakeIds<int64_t>(x, call);
    } else {
      ids = MakeIds<int32_t>(x, call);
    }
    const void* const data = call.wide ? static_cast<const void*>(wide_ids.data()) : ids.data();
    options.ids = {data, out.index_type, call.ids == Call::Ids::kPerRow ? x.cols : 0};
  }
  try {
    if (call.k.size() == 1) {
      TopK(x, static_cast<int64_t>(call.k[0]), out, options);
    } else {
      TopK(x, call.k, out, options);
    }
  } catch (const Error& error) {
    outcome.fault = Concat("threw: ", error.what());
    return outcome;
  }
  for (int64_t row = 0; row < x.rows && outcome.fault.empty(); ++row) {
    const std::vector<int32_t>& columns = truth.columns[static_cast<size_t>(row)];
    const std::vector<int32_t> best(columns.begin(), columns.begin() + call.KOfRow(row));
    outcome.fault += ExpectRow(x, row, best, call, outputs);
    if (call.stats) {
      outcome.fault += CheckStats(x, row, best, call, outcome.stats[static_cast<size_t>(row)]);
    }
    for (int64_t col = 0; col < call.MaxK(); ++col) {
      outcome.indices.push_back(outputs.Index(row, col));
    }
  }
  if (outcome.fault.empty()) {
    outcome.fault = outputs.values.Difference("values") + outputs.indices.Difference("indices");
  }
  return outcome;
}

std::string Compare(const Outcome& a, const Outcome& b) {
  if (!a.fault.empty()) return a.fault;
  if (!b.fault.empty()) return b.fault;
  if (a.indices != b.indices) return "right, but in another order";
  for (size_t row = 0; row < a.stats.size(); ++row) {
    if (a.stats[row].elements_examined != b.stats[row].elements_examined) {
      return Concat("elements_examined of row ", row, " = ", a.stats[row].elements_examined,
                    " and ", b.stats[row].elements_examined);
    }
  }
  return "";
}

std::vector<int32_t> RowAnswer(Output& indices, int64_t row, const std::vector<int32_t>& best,
                               int64_t width, bool sorted, std::string* fault) {
  std::vector<int32_t> answer = best;
  std::vector<int32_t> rising;
  if (!sorted) {
    rising = best;
    std::ranges::sort(rising);
  }
  std::vector<bool> seen(rising.size());
  for (size_t i = 0; i < rising.size(); ++i) {
    std::memcpy(&answer[i], indices.cell(row, static_cast<int64_t>(i)), sizeof(int32_t));
    const auto at = std::ranges::lower_bound(rising, answer[i]);
    const auto place = static_cast<size_t>(at - rising.begin());
    const bool is_new = at != rising.end() && *at == answer[i] && !seen[place];
    if (is_new) {
      seen[place] = true;
    } else {
      *fault = Concat("indices[", row, ", ", i, "] = ", answer[i],
                      " is not among the best, or is there twice; ");
      answer = best;
      break;
    }
  }
  answer.resize(static_cast<size_t>(width), -1);
  return answer;
}

std::string CheckTopKOnAllTargets(const Input& input, const Truth& truth, const Call& call) {
  std::string fault;
  std::string first;
  Outcome expected;
  for (const std::string& target : SweepTargets()) {
    SetTarget(target);
    Outcome outcome = CheckTopK(input, truth, call);
    if (first.empty()) {
      first = target;
      expected = outcome;
    }
    fault = Compare(expected, outcome);
    if (!fault.empty()) {
      fault = Concat("on ", target, " (first: ", first, "), ", Describe(input.spec()), " | ",
                     Describe(call), ": ", fault);
      break;
    }
  }
  SetTarget("");
  return fault;
}

ThreadPool& PoolOf(int threads) {
  static std::map<int, std::unique_ptr<ThreadPool>> pools;
  std::unique_ptr<ThreadPool>& pool = pools[threads];
  if (pool == nullptr) pool = std::make_unique<ThreadPool>(threads);
  return *pool;
}

uint64_t FromEnvironment(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 0);
}

}  // namespace riffle::test
