// Any page table, lengths, window and layout: a call that breaks the contract must be refused and
// write nothing; any other must give the softmax of a scalar loop in double. Slots that no sequence
// sees are NaN, and arrays end where their allocation ends.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <vector>

#include "fuzz/bytes.h"
#include "riffle/attention.h"
#include "riffle/error.h"
#include "testing/kv_codes.h"

namespace {

using riffle::DType;
using riffle::KvFormat;
using riffle::PagedKv;
using riffle::fuzz::Bytes;
using riffle::test::KvCoding;
using riffle::test::Scaling;

constexpr int kDim = 32;

const KvCoding kCodings[] = {
    {.dtype = DType::kF32},
    {.dtype = DType::kF16},
    {.dtype = DType::kE4M3},
    {.dtype = DType::kE5M2, .scaling = Scaling::kRow, .scale_dtype = DType::kE8M0},
    {.dtype = DType::kI8, .scaling = Scaling::kRow},
    {.dtype = DType::kU8, .format = KvFormat::kQ8_0},
    {.dtype = DType::kU8, .format = KvFormat::kQ4_1},
    {.dtype = DType::kU8, .format = KvFormat::kQ5_0}};
constexpr float kUntouched = -77.0f;

void Expect(bool ok) {
  if (!ok) std::abort();
}

// A number in [-1, 1) that is a function of a counter.
float Noise(uint32_t i) {
  i = (i ^ 61u ^ (i >> 16)) * 9u;
  i = (i ^ (i >> 4)) * 0x27d4eb2du;
  return static_cast<float>(static_cast<int32_t>((i ^ (i >> 15)) & 0xffffu) - 0x8000) / 0x8000;
}

// The rows of keys or of values: coded, and what they stand for. Rows that FillPool leaves alone
// are NaN.
struct Pool {
  KvCoding coding;
  int dim = 0;
  std::vector<uint8_t> rows;
  std::vector<uint8_t> scales;
  std::vector<double> content;  // [rows][dim]

  int64_t RowUnits() const {
    return coding.format == KvFormat::kPlain ? dim : dim / 32 * BlockBytes(coding.format);
  }
  void Reserve(size_t count) {
    rows.assign(count * static_cast<size_t>(RowUnits()) * SizeOf(coding.dtype), 0xff);
    if (coding.scaling == Scaling::kRow) {
      scales.assign(count * SizeOf(coding.scale_dtype), 0xff);
    }
    content.assign(count * static_cast<size_t>(dim), std::numeric_limits<double>::quiet_NaN());
  }

  // Row `row`, of Noise from `seed` on.
  void Put(size_t row, uint32_t seed) {
    double x[2 * kDim];
    for (int i = 0; i < dim; ++i)
      x[i] = static_cast<double>(Noise(seed + static_cast<uint32_t>(i)));
    uint8_t* at = rows.data() + row * static_cast<size_t>(RowUnits()) * SizeOf(coding.dtype);
    double scale = 1;
    if (coding.format != KvFormat::kPlain) {
      for (int i = 0; i < dim; i += 32) {
        riffle::test::EncodeBlock(coding.format, x + i, at + i / 32 * BlockBytes(coding.format));
      }
    } else {
      if (coding.scaling == Scaling::kRow) {
        scale = riffle::test::EncodeScale(coding.scale_dtype,
                                          1 / riffle::test::LargestCode(coding.dtype),
                                          scales.data() + row * SizeOf(coding.scale_dtype));
      }
      for (int i = 0; i < dim; ++i) {
        riffle::test::EncodeElement(coding.dtype, x[i] / scale, at, i);
      }
    }
    const auto decoded = riffle::test::DecodeRow(coding, at, dim, [scale](int) { return scale; });
    std::copy(decoded.begin(), decoded.end(),
              content.begin() + static_cast<std::ptrdiff_t>(row) * dim);
  }
};

class Call {
 public:
  explicit Call(Bytes bytes) : bytes_(bytes) {
    num_pages_ = static_cast<int>(bytes_.Between(1, 9));
    page_size_ = static_cast<int>(bytes_.Between(1, 20));
    kv_heads_ = static_cast<int>(bytes_.Between(1, 2));
    group_ = static_cast<int>(bytes_.Between(1, 5));
    max_pages_ = static_cast<int>(bytes_.Between(0, 8));
    TakeBatch();
    TakeOptions();
    FillPool();
    const size_t n = static_cast<size_t>(tokens_) * heads();
    for (size_t i = 0; i < n * kDim; ++i) {
      q_.push_back(4 * Noise(static_cast<uint32_t>(i) + 1000000));
    }
    out_.assign(n * static_cast<size_t>(values_.dim), kUntouched);
    lse_.assign(n, kUntouched);
  }

  void Run() {
    const riffle::HeadsView q{
        q_.data(), DType::kF32, tokens_, heads(), kDim, int64_t{heads()} * kDim, kDim};
    riffle::PagedBatch batch{cu_q_lens_, kv_lens_, table_.data(), max_pages_, max_pages_};
    const std::vector<int64_t> cu(cu_q_lens_.begin(), cu_q_lens_.end());
    const std::vector<int64_t> lens(kv_lens_.begin(), kv_lens_.end());
    const std::vector<int64_t> table(table_.begin(), table_.end());
    if (wide_) {
      batch = {cu, lens, table.data(), max_pages_, max_pages_};
    }
    const riffle::AttentionOut out{out_.data(), int64_t{heads()} * values_.dim, values_.dim,
                                   lse_.data(), heads()};
    bool accepted = true;
    try {
      if (planned_) {
        const riffle::AttentionPlan plan(q, View(keys_), batch, options_);
        riffle::PagedAttention(q, View(keys_), View(values_), plan, out, options_);
      } else {
        riffle::PagedAttention(q, View(keys_), View(values_), batch, out, options_);
      }
    } catch (const riffle::Error&) {
      accepted = false;
    }
    Expect(accepted == Valid());
    if (accepted) {
      Compare();
    } else {
      const auto untouched = [](float x) { return x == kUntouched; };
      Expect(std::all_of(out_.begin(), out_.end(), untouched));
      Expect(std::all_of(lse_.begin(), lse_.end(), untouched));
    }
  }

 private:
  int heads() const { return kv_heads_ * group_; }
  int sequences() const { return static_cast<int>(kv_lens_.size()); }
  int QBegin(int b) const { return cu_q_lens_.empty() ? b : cu_q_lens_[static_cast<size_t>(b)]; }
  int32_t Page(int b, int i) const { return table_[static_cast<size_t>(b) * max_pages_ + i]; }

  // Usually a number in first..last; now and then any number.
  int32_t UsuallyBetween(int64_t first, int64_t last) {
    return bytes_.OneIn(40) ? bytes_.Take<int32_t>()
                            : static_cast<int32_t>(bytes_.Between(first, last));
  }

  void TakeBatch() {
    const auto count = static_cast<size_t>(bytes_.Between(0, 4));
    const bool decode = bytes_.OneIn(3);
    if (!decode) cu_q_lens_.push_back(bytes_.OneIn(60) ? bytes_.Take<int32_t>() : 0);
    for (size_t b = 0; b < count; ++b) {
      kv_lens_.push_back(UsuallyBetween(0, int64_t{max_pages_} * page_size_));
      if (!decode) {
        const int64_t q_len = bytes_.OneIn(8) ? bytes_.Between(0, 6)
                                              : bytes_.Between(0, std::clamp(kv_lens_[b], 0, 6));
        const int64_t next = cu_q_lens_.back() + q_len;
        cu_q_lens_.push_back(bytes_.OneIn(40) ? bytes_.Take<int32_t>()
                                              : static_cast<int32_t>(next));
      }
      for (int i = 0; i < max_pages_; ++i) table_.push_back(UsuallyBetween(0, num_pages_ - 1));
    }
    tokens_ = decode ? static_cast<int64_t>(count) : std::clamp(cu_q_lens_.back(), 0, 24);
    if (bytes_.OneIn(50)) ++tokens_;
  }

  void TakeOptions() {
    options_.causal = !bytes_.OneIn(3);
    if (bytes_.OneIn(3)) options_.window = bytes_.Between(1, 40);
    if (bytes_.OneIn(50)) options_.window = bytes_.Take<int64_t>();
    if (bytes_.OneIn(3)) options_.soft_cap = 2.0f;
    layout_ = static_cast<int>(bytes_.Between(0, 2));
    if (bytes_.OneIn(4)) options_.window_right = options_.causal ? 0 : bytes_.Between(0, 40);
    if (bytes_.OneIn(50)) options_.window_right = bytes_.Take<int64_t>();
    wide_ = bytes_.OneIn(3);
    planned_ = bytes_.OneIn(3);
    keys_.coding = bytes_.OneIn(2) ? kCodings[0] : kCodings[bytes_.Between(0, 7)];
    values_.coding = bytes_.OneIn(2) ? kCodings[0] : kCodings[bytes_.Between(0, 7)];
    keys_.dim = kDim;
    values_.dim = bytes_.OneIn(4) ? 2 * kDim : kDim;
  }

  PagedKv View(const Pool& pool) const {
    PagedKv kv{pool.rows.data(), pool.coding.dtype, num_pages_, page_size_, kv_heads_, pool.dim};
    kv.format = pool.coding.format;
    const int64_t unit = pool.RowUnits();
    kv.token_stride = TokenRows() * unit;
    kv.head_stride = HeadRows() * unit;
    kv.page_stride = PageRows() * unit;
    if (!pool.scales.empty()) {
      kv.scales = {.data = pool.scales.data(),
                   .dtype = pool.coding.scale_dtype,
                   .page_stride = PageRows(),
                   .token_stride = TokenRows(),
                   .head_stride = HeadRows()};
    }
    return kv;
  }

  // Strides from a token, a head or a page to the next, in rows.
  int64_t TokenRows() const { return layout_ == 1 ? kv_heads_ : 1; }
  int64_t HeadRows() const {
    return layout_ == 0 ? page_size_ : layout_ == 1 ? 1 : int64_t{num_pages_} * page_size_;
  }
  int64_t PageRows() const { return int64_t{page_size_} * (layout_ == 2 ? 1 : kv_heads_); }
  size_t Row(int32_t page, int token, int head) const {
    return static_cast<size_t>(page * PageRows() + token * TokenRows() + head * HeadRows());
  }

  // The contract, in the caller's terms.
  bool Valid() const {
    if (options_.window && *options_.window < 1) return false;
    if (options_.window_right &&
        (*options_.window_right < 0 || (options_.causal && *options_.window_right > 0))) {
      return false;
    }
    const bool anywhere = !options_.causal && !options_.window && !options_.window_right;
    if (cu_q_lens_.empty() ? tokens_ != sequences()
                           : cu_q_lens_.front() != 0 || cu_q_lens_.back() != tokens_) {
      return false;
    }
    for (int b = 0; b < sequences(); ++b) {
      const int64_t q_len = cu_q_lens_.empty() ? 1 : int64_t{QBegin(b + 1)} - QBegin(b);
      const int64_t kv_len = kv_lens_[static_cast<size_t>(b)];
      if (q_len < 0 || kv_len < 0 || kv_len > int64_t{max_pages_} * page_size_ ||
          (kv_len > 0 && q_len > kv_len && !anywhere)) {
        return false;
      }
      for (int i = 0; i < (kv_len + page_size_ - 1) / page_size_; ++i) {
        if (Page(b, i) < 0 || Page(b, i) >= num_pages_) return false;
      }
    }
    return true;
  }

  void FillPool() {
    const auto rows = static_cast<size_t>(num_pages_) * page_size_ * kv_heads_;
    keys_.Reserve(rows);
    values_.Reserve(rows);
    if (!Valid()) return;
    for (int b = 0; b < sequences(); ++b) {
      for (int j = 0; j < kv_lens_[static_cast<size_t>(b)]; ++j) {
        for (int h = 0; h < kv_heads_; ++h) {
          const size_t row = Row(Page(b, j / page_size_), j % page_size_, h);
          keys_.Put(row, static_cast<uint32_t>(row) * 64);
          values_.Put(row, static_cast<uint32_t>(row) * 64 + 500000);
        }
      }
    }
  }

  void Compare() const {
    for (int b = 0; b < sequences(); ++b) {
      const int q_len = cu_q_lens_.empty() ? 1 : QBegin(b + 1) - QBegin(b);
      for (int i = 0; i < q_len; ++i) {
        for (int h = 0; h < heads(); ++h) CompareRow(b, q_len, i, h);
      }
    }
  }

  void CompareRow(int b, int q_len, int query, int head) const {
    const int kv_len = kv_lens_[static_cast<size_t>(b)];
    const int64_t position = int64_t{kv_len} - q_len + query;
    const size_t row = static_cast<size_t>(QBegin(b) + query) * heads() + head;
    const bool sees_all = !options_.causal && !options_.window && !options_.window_right;
    const int64_t right = options_.causal ? 0 : options_.window_right.value_or(0);
    const int64_t later = std::min<int64_t>(right, kv_len);
    const int64_t end =
        kv_len == 0 || sees_all ? kv_len : std::min<int64_t>(kv_len, position + 1 + later);
    const int64_t begin =
        options_.window && *options_.window <= position ? position - *options_.window + 1 : 0;
    double weight = 0;
    const auto value_dim = static_cast<size_t>(values_.dim);
    std::vector<double> value(value_dim);
    for (int64_t j = begin; j < end; ++j) {
      const size_t at = Row(Page(b, static_cast<int>(j / page_size_)),
                            static_cast<int>(j % page_size_), head / group_);
      double x = 0;
      for (size_t i = 0; i < kDim; ++i) {
        x += double{q_[row * kDim + i]} * keys_.content[at * kDim + i];
      }
      x /= std::sqrt(double{kDim});
      if (options_.soft_cap) x = *options_.soft_cap * std::tanh(x / *options_.soft_cap);
      const double w = std::exp(x);  // |x| < 23
      weight += w;
      for (size_t i = 0; i < value_dim; ++i) value[i] += w * values_.content[at * value_dim + i];
    }
    if (weight == 0) {
      Expect(lse_[row] == -std::numeric_limits<float>::infinity());
      for (size_t i = 0; i < value_dim; ++i) Expect(out_[row * value_dim + i] == 0);
      return;
    }
    Expect(std::abs(lse_[row] - std::log(weight)) < 1e-4);
    for (size_t i = 0; i < value_dim; ++i) {
      Expect(std::abs(out_[row * value_dim + i] - value[i] / weight) < 1e-4);
    }
  }

  Bytes bytes_;
  int num_pages_, page_size_, kv_heads_, group_, max_pages_;
  int layout_ = 0;        // HND, NHD, JAX
  bool wide_ = false;     // indices of int64
  bool planned_ = false;  // by an AttentionPlan
  int64_t tokens_ = 0;
  std::vector<int32_t> cu_q_lens_, kv_lens_, table_;
  Pool keys_, values_;
  std::vector<float> q_, out_, lse_;
  riffle::AttentionOptions options_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Call(Bytes(data, size)).Run();
  return 0;
}
