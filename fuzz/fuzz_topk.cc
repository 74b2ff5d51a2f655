// Compares TopK and TopKPerRow with the reference. Shapes, strides, options and values come from
// the fuzzer's bytes; memory lies between guard pages and red zones. Bad arguments must throw and
// write nothing.
#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <limits>

#include "fuzz/bytes.h"
#include "riffle/error.h"
#include "riffle/topk.h"
#include "testing/ranges_check.h"
#include "testing/text.h"
#include "testing/topk_check.h"

namespace riffle::fuzz {
namespace {

using test::Call;
using test::InputSpec;
using test::Ranges;

[[noreturn]] void Die(const std::string& text) {
  std::fprintf(stderr, "%s\n", text.c_str());
  std::abort();
}

void DieUnlessRight(const std::string& fault, const std::string& description) {
  if (!fault.empty()) Die(test::Concat("on ", Target(), ", ", description, ": ", fault));
}

InputSpec TakeInput(Bytes& bytes) {
  InputSpec spec;
  spec.dtype = static_cast<DType>(bytes.Take<uint8_t>() % kNumTopKDTypes);
  spec.rows = bytes.Between(0, 5);
  // Rows of 64 KB and more are split over threads.
  spec.n = bytes.OneIn(8) ? bytes.Between(16000, 40000) : bytes.Between(1, 4200);
  spec.k = bytes.Between(1, bytes.OneIn(2) ? std::min<int64_t>(spec.n, 100) : spec.n);
  const int64_t gap = bytes.Take<uint8_t>() % 9;
  const int64_t strides[] = {spec.n, spec.n + gap, -spec.n - gap, 0, gap, -gap};
  spec.row_stride = strides[bytes.Take<uint8_t>() % 6];
  spec.shift = bytes.Take<uint8_t>() % 64;
  spec.at_end = !bytes.OneIn(2);
  const int distribution = bytes.Take<uint8_t>() % (2 * test::kDistributions);
  spec.seed = bytes.Take<uint16_t>();
  spec.distribution = static_cast<test::Distribution>(distribution % test::kDistributions);
  if (distribution >= test::kDistributions) spec.raw = {0};  // replaced by the rest of the bytes
  return spec;
}

Algorithm TakeAlgorithm(Bytes& bytes, DType dtype) {
  const auto algorithm = static_cast<Algorithm>(bytes.Take<uint8_t>() % 3);
  return dtype > DType::kBF16 ? Algorithm::kAuto : algorithm;
}

Call TakeCall(Bytes& bytes, const InputSpec& spec) {
  Call call;
  call.k = {static_cast<int32_t>(spec.k)};
  if (bytes.OneIn(3)) {
    for (int64_t row = 1; row < spec.rows; ++row) {
      call.k.push_back(static_cast<int32_t>(bytes.Between(1, spec.k)));
    }
  }
  call.algorithm = TakeAlgorithm(bytes, spec.dtype);
  call.sorted = !bytes.OneIn(3);
  call.largest = !bytes.OneIn(3);
  call.wide = bytes.OneIn(3);
  const auto ids = static_cast<Call::Ids>(bytes.Take<uint8_t>() % 3);
  call.ids = call.sorted ? ids : Call::Ids::kNone;
  call.stats = bytes.OneIn(3);
  call.lanes = 1 << bytes.Take<uint8_t>() % 13;
  // A deep lane sort takes about n * k / lanes steps: more lanes keep a run short.
  while (spec.n * spec.k / call.lanes > 400'000 && call.lanes < 4096) call.lanes *= 2;
  int depth = 0;
  for (int steps = bytes.Take<uint8_t>() % 4; steps > 0; --steps) {
    depth += 1 + bytes.Take<uint8_t>() % 8;
    call.schedule.push_back(depth);
  }
  // Planning takes milliseconds for a large k.
  if (call.schedule.empty() && spec.k > 200) call.schedule = {1 + static_cast<int>(spec.k) / 64};
  call.threads = 1 + bytes.Take<uint8_t>() % 3;
  call.values_gap = bytes.Take<uint8_t>() % 7;
  call.indices_gap = bytes.Take<uint8_t>() % 7;
  call.values_shift = bytes.Take<uint8_t>() % 64;
  return call;
}

Ranges TakeRanges(Bytes& bytes, InputSpec& spec) {
  const auto n = static_cast<int32_t>(spec.n);
  Ranges ranges;
  if (bytes.OneIn(3)) {
    const int next_n = 1 + bytes.Take<uint8_t>() % 3;
    std::vector<int32_t> lens(static_cast<size_t>(spec.rows / next_n));
    for (int32_t& length : lens) length = static_cast<int32_t>(bytes.Between(-2, n));
    spec.rows = static_cast<int64_t>(lens.size()) * next_n;
    ranges = test::DecodeRanges(lens, next_n);
  } else {
    for (int64_t row = 0; row < spec.rows; ++row) {
      ranges.starts.push_back(static_cast<int32_t>(bytes.Between(0, n + 2)));
      ranges.ends.push_back(static_cast<int32_t>(bytes.Between(-2, n)));
    }
  }
  ranges.k = static_cast<int32_t>(bytes.OneIn(4) ? bytes.Between(1, 6000) : spec.k);
  ranges.sorted = !bytes.OneIn(3);
  ranges.algorithm = TakeAlgorithm(bytes, spec.dtype);
  ranges.index_order_if_short = bytes.OneIn(4);
  ranges.threads = 1 + bytes.Take<uint8_t>() % 3;
  ranges.gap = bytes.Take<uint8_t>() % 7;
  return ranges;
}

// A value outside of [first, last].
int64_t Outside(int64_t first, int64_t last, Bytes& bytes) {
  const int64_t far = std::abs(static_cast<int64_t>(bytes.Take<int32_t>())) + 1;
  const int64_t extremes[] = {first - 1,
                              last + 1,
                              first - far,
                              last + far,
                              std::numeric_limits<int64_t>::min(),
                              std::numeric_limits<int64_t>::max()};
  return extremes[bytes.Take<uint8_t>() % 6];
}

int32_t ToInt32(int64_t value) {
  return static_cast<int32_t>(std::clamp<int64_t>(value, std::numeric_limits<int32_t>::min(),
                                                  std::numeric_limits<int32_t>::max()));
}

// Row strides with which two or more rows do not fit into any address space.
constexpr int64_t kBeyond[] = {std::numeric_limits<int64_t>::max(),
                               std::numeric_limits<int64_t>::min(),
                               std::numeric_limits<int64_t>::max() / 2,
                               std::numeric_limits<int64_t>::min() / 2,
                               int64_t{1} << 60,
                               -(int64_t{1} << 60)};

// A valid call of TopK or TopKPerRow. The functions below make one argument bad.
struct SpoiledCall {
  SpoiledCall(const InputSpec& spec, Bytes& bytes)
      : input(spec),
        x(input.view()),
        k(bytes.Between(1, spec.n)),
        values(spec.rows, k, k, SizeOf(spec.dtype)),
        indices(spec.rows, k, k, sizeof(int32_t)),
        out{values.data(), k, reinterpret_cast<int32_t*>(indices.data()), k, nullptr},
        starts(static_cast<size_t>(spec.rows), 0),
        ends(starts.size(), 1),
        ks(starts.size(), 1),
        per_row(bytes.OneIn(2)) {}

  void Run() {
    options.depth_schedule = schedule;
    if (per_row) {
      const OutView<int32_t> only{static_cast<int32_t*>(out.indices), out.indices_stride};
      TopKPerRow(x, starts, ends, k, only, options);
    } else if (one_k) {
      TopK(x, k, out, options);
    } else {
      TopK(x, ks, out, options);
    }
  }

  const test::Input input;
  MatrixView x;
  int64_t k;
  test::Output values, indices;
  TopKOut out;
  TopKOptions options;
  std::vector<int32_t> starts, ends, ks;
  std::vector<int> schedule;
  bool per_row;
  bool one_k = true;
};

// Makes an argument that describes a matrix bad.
void SpoilMatrices(Bytes& bytes, SpoiledCall& call) {
  switch (bytes.Take<uint8_t>() % 7) {
    case 0:
      call.x.cols = Outside(1, std::numeric_limits<int32_t>::max(), bytes);
      break;
    case 1:
      call.x.rows = -1 - std::abs(static_cast<int64_t>(bytes.Take<int32_t>()));
      break;
    case 2:
      call.x.data = nullptr;
      break;
    case 3:
      call.out.indices = nullptr;
      break;
    case 4:
      call.out.indices_stride = bytes.Between(0, 2 * call.k - 2) - (call.k - 1);  // rows overlap
      break;
    case 5:
      call.out.indices_stride = kBeyond[bytes.Take<uint8_t>() % 6];
      break;
    default:
      call.out.values = call.out.indices;
      call.per_row = false;
      break;
  }
}

// Makes k, a range or an option bad. Returns false if the bytes chose a valid one.
bool SpoilNumbers(Bytes& bytes, SpoiledCall& call) {
  const int64_t n = call.x.cols;
  const size_t row = bytes.Take<uint8_t>() % call.ks.size();
  switch (bytes.Take<uint8_t>() % 8) {
    case 0:
      call.k = Outside(1, call.per_row ? std::numeric_limits<int32_t>::max() : n, bytes);
      break;
    case 1:
      call.options.lanes = (bytes.Take<int16_t>() & ~1) + (bytes.OneIn(2) ? 3 : 0);
      return !std::has_single_bit(static_cast<unsigned>(call.options.lanes)) ||
             call.options.lanes > 4096;
    case 2:
      call.schedule = {1 + bytes.Take<uint8_t>()};
      call.schedule.push_back(call.schedule[0] - bytes.Take<uint8_t>());
      break;
    case 3:
      call.ends[row] = ToInt32(n + 1 + bytes.Take<uint16_t>());
      call.per_row = true;
      break;
    case 4:
      call.starts[row] = ToInt32(-1 - std::abs(static_cast<int64_t>(bytes.Take<int32_t>())));
      call.per_row = true;
      break;
    case 5:
      call.ks[row] = ToInt32(Outside(1, n, bytes));
      call.per_row = call.one_k = false;
      break;
    case 6:
      call.options.ids = {call.starts.data(), IndexType::kInt64, 0};  // the indices are int32
      break;
    default:
      call.options.algorithm = static_cast<Algorithm>(3 + bytes.Take<uint8_t>() % 200);
      break;
  }
  return true;
}

// A call with one bad argument must throw and write nothing.
void RunSpoiled(Bytes& bytes) {
  InputSpec spec;
  spec.dtype = static_cast<DType>(bytes.Take<uint8_t>() % kNumTopKDTypes);
  spec.rows = bytes.Between(2, 4);
  spec.n = spec.row_stride = bytes.Between(1, 100);
  SpoiledCall call(spec, bytes);
  if (bytes.OneIn(2)) {
    SpoilMatrices(bytes, call);
  } else if (!SpoilNumbers(bytes, call)) {
    return;
  }
  try {
    call.Run();
    Die(test::Concat("a spoiled call did not throw: ", Describe(spec), " k=", call.k));
  } catch (const Error&) {
  }
  DieUnlessRight(call.values.Difference("values") + call.indices.Difference("indices"),
                 "a call that threw");
}

void Run(Bytes& bytes) {
  static const std::vector<std::string> targets = Targets();
  SetTarget(targets[bytes.Take<uint8_t>() % targets.size()]);
  const int kind = bytes.Take<uint8_t>() % 8;
  if (kind == 0) {
    RunSpoiled(bytes);
    return;
  }
  InputSpec spec = TakeInput(bytes);
  Ranges ranges;
  Call call;
  if (kind <= 2) {
    ranges = TakeRanges(bytes, spec);
  } else {
    call = TakeCall(bytes, spec);
  }
  if (!spec.raw.empty()) {
    spec.raw = bytes.Rest();
    spec.raw.push_back(0xff);  // never empty, and no multiple of the element size
  }
  const test::Input input(spec);
  if (kind <= 2) {
    DieUnlessRight(CheckRanges(input, ranges).fault, Describe(spec) + " | " + Describe(ranges));
  } else {
    const test::Truth truth(input.view(), spec.k, call.largest);
    DieUnlessRight(CheckTopK(input, truth, call).fault, Describe(spec) + " | " + Describe(call));
  }
}

}  // namespace
}  // namespace riffle::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  riffle::fuzz::Bytes bytes(data, size);
  riffle::fuzz::Run(bytes);
  return 0;
}
