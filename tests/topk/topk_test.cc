// Compares TopK with the reference on every SIMD target of the machine: every length around the
// widths of vectors, buckets and lanes, with every k, dtype and distribution.
#include "riffle/topk.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <set>
#include <tuple>
#include <utility>

#include "testing/reference.h"
#include "testing/targets.h"
#include "testing/text.h"
#include "testing/topk_check.h"

namespace riffle::test {
namespace {

const std::vector<DType> kDTypes = AllDTypes();
constexpr Algorithm kAlgorithms[] = {Algorithm::kBucketMaxima, Algorithm::kLaneSort};

std::set<int64_t> KsFor(int64_t n) {
  std::set<int64_t> ks;
  for (const int64_t k : {int64_t{1}, int64_t{2}, int64_t{3}, int64_t{7}, int64_t{8}, int64_t{64},
                          int64_t{1024}, n / 2, n - 1, n}) {
    if (k >= 1 && k <= n) ks.insert(k);
  }
  return ks;
}

// Lane sort keeps the m best of each lane in vectors: about n * m work. This keeps a k that needs a
// large m from dominating the run. It supports three dtypes.
bool Affordable(Algorithm algorithm, DType dtype, int64_t n, int64_t k, int lanes) {
  return algorithm != Algorithm::kLaneSort ||
         (dtype <= DType::kBF16 && n * (k / lanes + 1) <= 4'000'000);
}

class TopKTest : public testing::TestWithParam<std::tuple<DType, Distribution>> {
 protected:
  DType dtype() const { return std::get<0>(GetParam()); }
  Distribution distribution() const { return std::get<1>(GetParam()); }

  // One row of n, shifted off alignment by `shift` bytes.
  void CheckRow(int64_t n, int64_t k, int64_t shift, bool largest = true) {
    InputSpec spec{
        distribution(), dtype(), 1, n, n, k, shift, true, static_cast<uint64_t>(n * 1000 + k)};
    const Input input(spec);
    const Truth truth(input.view(), k, largest);
    for (const Algorithm algorithm : kAlgorithms) {
      if (!Affordable(algorithm, dtype(), n, k, 128)) continue;
      Call call;
      call.k = {static_cast<int32_t>(k)};
      call.largest = largest;
      call.wide = !largest;
      call.algorithm = algorithm;
      call.stats = k % 2 == 1;
      if (k > 64) {  // planning a schedule for each of so many k would take most of the time
        const auto least = static_cast<int>(k / 128);
        call.schedule = {least + 1, least + 3, 2 * least + 8};
      }
      ASSERT_EQ(CheckTopKOnAllTargets(input, truth, call), "");
    }
  }
};

TEST_P(TopKTest, ShortRows) {
  for (const int64_t n : {1, 2, 3, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 1000}) {
    for (const int64_t k : KsFor(n)) {
      ASSERT_NO_FATAL_FAILURE(CheckRow(n, k, (n + k) % 4));
    }
  }
}

TEST_P(TopKTest, LongRows) {
  std::vector<int64_t> lengths = {4095, 4096, 4097, 5000};
  if (!kSlow) lengths.push_back(20011);  // where slow, Vocabularies has long rows
  for (const int64_t n : lengths) {
    for (const int64_t k : KsFor(n)) {
      ASSERT_NO_FATAL_FAILURE(CheckRow(n, k, k % 4));
    }
  }
}

TEST_P(TopKTest, Smallest) {
  for (const int64_t n : {1, 33, 1000, 4097}) {
    for (const int64_t k : KsFor(n)) {
      ASSERT_NO_FATAL_FAILURE(CheckRow(n, k, k % 4, /*largest=*/false));
    }
  }
}

// Buckets begin at cache lines, so rows begin anywhere before one, and the last bucket may be empty
// or hold but one element.
TEST_P(TopKTest, AnyElementOfALine) {
  const auto element = static_cast<int64_t>(SizeOf(dtype()));
  for (const int64_t n :
       kSlow ? std::vector<int64_t>{2049, 4159} : std::vector<int64_t>{2049, 4096, 4097, 4159}) {
    for (int64_t shift = 0; shift < 64; shift += element < 4 ? 5 * element : element) {
      for (const int64_t k : {2, 20}) {  // even: without statistics
        ASSERT_NO_FATAL_FAILURE(CheckRow(n, k, shift, shift % 3 != 0));
      }
    }
  }
}

std::string ParamName(const testing::TestParamInfo<TopKTest::ParamType>& info) {
  std::string name = Concat(Name(std::get<0>(info.param)), '_', Name(std::get<1>(info.param)));
  std::ranges::replace(name, '-', 'n');
  return name;
}
INSTANTIATE_TEST_SUITE_P(All, TopKTest,
                         testing::Combine(testing::ValuesIn(kDTypes),
                                          testing::ValuesIn(AllDistributions())),
                         ParamName);

// The vocabulary of the published kernel, and a length one above a power of two.
TEST(TopK, Vocabularies) {
  Rng rng(FromEnvironment("RIFFLE_TEST_SEED", 5));
  for (const DType dtype : kDTypes) {
    for (const Distribution distribution : AllDistributions()) {
      const int64_t n = kSlow ? 65537 : rng.Pick(std::vector<int64_t>{65537, 201088});
      const auto k = rng.Pick(std::vector<int32_t>{1, 8, 64, 256, 1024, 4096});
      const Input input({distribution, dtype, 1, n, n, k, 0, true, rng.Next()});
      const Truth truth(input.view(), k);
      for (const Algorithm algorithm : kAlgorithms) {
        if (!Affordable(algorithm, dtype, n, k, 128)) continue;
        Call call;
        call.k = {k};
        call.algorithm = algorithm;
        call.stats = true;
        call.threads = static_cast<int>(rng.Between(1, 3));
        ASSERT_EQ(CheckTopKOnAllTargets(input, truth, call), "");
      }
    }
  }
}

// A bound of zero from minima of bits: -0 ties with the +0 and belongs behind the positive values
// that a bucket may hide, both fewer than k.
TEST(TopK, NegativeZeros) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16, DType::kF64}) {
    const auto bits_of = [dtype](float value) {
      return dtype == DType::kF64 ? std::bit_cast<uint64_t>(static_cast<double>(value))
                                  : Encode(dtype, value);
    };
    const auto element = static_cast<int64_t>(SizeOf(dtype));
    for (const int64_t n : {5000, 40000}) {
      for (const int64_t few : {0, 5, 30}) {
        std::vector<uint8_t> raw(static_cast<size_t>(n * element));
        for (int64_t i = 0; i < n; ++i) {
          Store(dtype, bits_of(i % 3 == 0 ? -1.0f : -0.0f), raw.data() + i * element);
        }
        for (int64_t i = 0; i < few; ++i) {
          uint8_t* at = raw.data() + (n - 1 - i * (n / 31)) * element;
          Store(dtype, bits_of(i % 2 == 0 ? 0.0f : 2.0f), at);
        }
        const Input input({Distribution::kNormal, dtype, 1, n, n, 64, 0, true, 1, raw});
        const Truth truth(input.view(), 64);
        for (const bool largest : {true, false}) {
          Call call;
          call.k = {64};
          call.largest = largest;
          call.stats = true;
          ASSERT_EQ(
              CheckTopKOnAllTargets(input, largest ? truth : Truth(input.view(), 64, false), call),
              "")
              << n << ' ' << few;
        }
      }
    }
  }
}

// The ends of each integer's range, below or above which no key is left: all elements are equal, or
// all but a few.
TEST(TopK, IntegerExtremes) {
  for (const DType dtype : kDTypes) {
    if (IsFloat(dtype)) continue;
    const auto element = static_cast<int64_t>(SizeOf(dtype));
    const uint64_t ones = ~uint64_t{0};
    const uint64_t sign = uint64_t{1} << (8 * element - 1);
    for (const uint64_t most : {uint64_t{0}, ones, sign, sign - 1}) {
      for (const uint64_t some : {uint64_t{0}, ones, sign, sign - 1, uint64_t{1}}) {
        for (const int64_t n : {40, 300, 5000, 40000}) {
          std::vector<uint8_t> raw(static_cast<size_t>(n * element));
          for (int64_t i = 0; i < n; ++i) {
            Store(dtype, i % 97 == 5 ? some : most, raw.data() + i * element);
          }
          const Input input({Distribution::kNormal, dtype, 1, n, n, 32, 0, true, 1, raw});
          for (const bool largest : {true, false}) {
            const Truth truth(input.view(), 32, largest);
            Call call;
            call.k = {32};
            call.largest = largest;
            call.stats = n != 300;
            call.threads = n > 5000 ? 3 : 1;
            ASSERT_EQ(CheckTopKOnAllTargets(input, truth, call), "") << most << ' ' << some;
          }
        }
      }
    }
  }
}

// Random combinations of all arguments. RIFFLE_TEST_SEED repeats one of them, RIFFLE_TEST_CASES
// makes the run longer.
class RandomCase {
 public:
  explicit RandomCase(uint64_t seed) : rng_(seed) {
    MakeInput();
    MakeCall();
  }
  const InputSpec& spec() const { return spec_; }
  const Call& call() const { return call_; }

 private:
  // Small more often than large.
  int64_t Magnitude(int64_t limit) {
    const auto bits = std::bit_width(static_cast<uint64_t>(limit));
    return std::min(limit,
                    1 + rng_.Below(int64_t{1} << rng_.Between(0, static_cast<int64_t>(bits))));
  }

  void MakeInput() {
    spec_.distribution = rng_.Pick(AllDistributions());
    spec_.dtype = rng_.Pick(kDTypes);
    spec_.rows = rng_.OneIn(50) ? 0 : Magnitude(9);
    spec_.n = rng_.OneIn(40) ? Magnitude(100000) : Magnitude(8192);
    spec_.k = Magnitude(spec_.n);
    const int64_t strides[] = {spec_.n, spec_.n, spec_.n + rng_.Below(70), -spec_.n - rng_.Below(9),
                               0,       1,       -rng_.Below(spec_.n)};
    spec_.row_stride = rng_.Pick(strides);
    spec_.shift = rng_.OneIn(2) ? 0 : rng_.Below(64);
    spec_.at_end = !rng_.OneIn(4);
    spec_.seed = rng_.Next();
  }

  void MakeCall() {
    call_.k = {static_cast<int32_t>(spec_.k)};
    if (spec_.rows > 1 && rng_.OneIn(3)) {
      for (int64_t row = 1; row < spec_.rows; ++row) {
        call_.k.push_back(static_cast<int32_t>(rng_.Between(1, spec_.k)));
      }
      std::swap(call_.k.front(), call_.k[static_cast<size_t>(rng_.Below(spec_.rows))]);
    }
    call_.algorithm =
        rng_.Pick(std::vector{Algorithm::kAuto, Algorithm::kBucketMaxima, Algorithm::kLaneSort});
    call_.lanes = 1 << rng_.Between(0, 12);
    if (spec_.dtype > DType::kBF16) call_.algorithm = Algorithm::kAuto;
    while (!Affordable(call_.algorithm, spec_.dtype, spec_.n, spec_.k, call_.lanes)) {
      call_.lanes *= 2;
    }
    call_.lanes = std::min(call_.lanes, 4096);
    if (rng_.OneIn(2)) {
      for (int depth = 0; rng_.OneIn(3) || depth == 0; call_.schedule.push_back(depth)) {
        depth += static_cast<int>(rng_.Between(1, 6));
      }
    }
    call_.sorted = !rng_.OneIn(3);
    call_.largest = !rng_.OneIn(3);
    call_.wide = rng_.OneIn(3);
    if (call_.sorted && rng_.OneIn(4)) {
      call_.ids = rng_.OneIn(2) ? Call::Ids::kShared : Call::Ids::kPerRow;
    }
    call_.stats = rng_.OneIn(3);
    call_.threads = rng_.Pick(std::vector{1, 2, 3, 5});
    call_.values_gap = rng_.Below(20);
    call_.indices_gap = rng_.Below(20);
    call_.values_shift = static_cast<size_t>(rng_.Below(64));
    call_.indices_shift =
        static_cast<size_t>(rng_.Below(8)) * (call_.wide ? sizeof(int64_t) : sizeof(int32_t));
  }

  Rng rng_;
  InputSpec spec_;
  Call call_;
};

TEST(TopK, RandomCases) {
  const uint64_t seed = FromEnvironment("RIFFLE_TEST_SEED", 1);
  const uint64_t cases = FromEnvironment("RIFFLE_TEST_CASES", kSlow ? 1000 : 2000);
  for (uint64_t i = 0; i < cases; ++i) {
    const RandomCase random(seed + i);
    const Input input(random.spec());
    const Truth truth(input.view(), random.spec().k, random.call().largest);
    ASSERT_EQ(CheckTopKOnAllTargets(input, truth, random.call()), "")
        << "RIFFLE_TEST_SEED=" << seed + i << " RIFFLE_TEST_CASES=1 repeats it";
  }
}

}  // namespace
}  // namespace riffle::test
