#include "testing/attention_case.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <utility>

#include "testing/distributions.h"
#include "testing/reference.h"
#include "testing/rng.h"
#include "testing/text.h"

namespace riffle::test {
namespace {

constexpr int kTableGap = 3;  // columns of a row of the table past what it needs
constexpr uint8_t kPattern = 0xa5;

// What `value` becomes in `dtype`, exactly.
float Rounded(DType dtype, double value) {
  const uint32_t bits = Encode(dtype, static_cast<float>(value));
  return static_cast<float>(Decode(dtype, &bits));
}

// One generator per vector, so that a position's content does not depend on the case around it.
Rng VectorRng(const AttentionSpec& spec, int kind, int seq, int position, int head) {
  Rng rng(spec.seed);
  uint64_t key = rng.Next();
  for (const int part : {kind, seq, position, head}) {
    key = Rng(key ^ static_cast<uint64_t>(part)).Next();
  }
  return Rng(key);
}

// An element of keys or values before it is coded.
double Element(const AttentionSpec& spec, bool value, int seq, int kv_len, int position, int i,
               Rng& rng) {
  const double x = rng.Normal();
  switch (spec.data) {
    case KvData::kHugeLogits:
      return value ? x : 400 * x;
    case KvData::kOneHotKey:
      return !value && position == 37 * (seq + 1) % kv_len ? 40 * x : x;
    case KvData::kEqualKeys:
      return value ? x : 0.25;
    case KvData::kConstant:
      return value ? 0.1 : 0.0;
    case KvData::kTiny:
      return value ? x * (ValueCoding(spec).dtype == DType::kF16 ? 1e-6 : 3e-38) : x;
    case KvData::kVisibleNaN:
      if (position % 53 == 50 && (value ? i == 5 : seq % 2 == 1 && i == 0)) {
        return std::numeric_limits<double>::quiet_NaN();
      }
      return x;
    case KvData::kInfiniteLater:
      if (value && position == kv_len - 1) {
        return i % 2 == 0 ? -std::numeric_limits<double>::infinity()
                          : std::numeric_limits<double>::infinity();
      }
      return x;
    case KvData::kNormal:
      break;
  }
  return x;
}

void PutElement(DType dtype, float value, uint8_t* at) {
  const uint32_t bits = std::isnan(value)   ? NaN(dtype, 0)
                        : std::isinf(value) ? (value > 0 ? PlusInf(dtype) : MinusInf(dtype))
                                            : Encode(dtype, value);
  Store(dtype, bits, at);
}

}  // namespace

namespace {

// The coding of keys, or values, for which the spec names no coding of their own.
KvCoding CommonCoding(const AttentionSpec& spec) {
  KvCoding coding{.dtype = spec.kv_dtype};
  if (spec.int8) {  // as in JAX's quantised pages
    coding = {.dtype = DType::kI8,
              .scaling = Scaling::kRow,
              .scale_dtype = spec.kv_dtype,
              .divisor = 127.5f};
  }
  return coding;
}

}  // namespace

KvCoding KeyCoding(const AttentionSpec& spec) {
  return spec.keys ? *spec.keys : CommonCoding(spec);
}

KvCoding ValueCoding(const AttentionSpec& spec) {
  if (spec.value_offset >= 0) return KeyCoding(spec);
  return spec.values ? *spec.values : CommonCoding(spec);
}

namespace {

std::string Describe(const KvCoding& coding) {
  return Concat(Name(coding.dtype), " ", Name(coding.format), " scaling ",
                static_cast<int>(coding.scaling), " of ", coding.group, " by ",
                Name(coding.scale_dtype), " / ", coding.divisor);
}

}  // namespace

std::string Describe(const AttentionSpec& spec) {
  std::string lens;
  for (size_t b = 0; b < std::min<size_t>(spec.kv_lens.size(), 6); ++b) {
    lens += Concat(" ", spec.q_lens[b], "/", spec.kv_lens[b]);
  }
  return Concat("q/kv lens", lens, spec.kv_lens.size() > 6 ? "..." : "", ", ", spec.kv_heads, "x",
                spec.group, " heads of ", spec.dim, ", page ", spec.page_size, ", q ",
                Name(spec.q_dtype), ", keys ", Describe(KeyCoding(spec)), ", values ",
                Describe(ValueCoding(spec)), " of ", ValueDim(spec), " from ", spec.value_offset,
                ", layout ", static_cast<int>(spec.layout), ", data ", static_cast<int>(spec.data),
                ", scale ", spec.scale.value_or(-99), ", causal ", spec.causal, ", window ",
                spec.window.value_or(0), ", right ", spec.window_right.value_or(-1), ", cap ",
                spec.soft_cap.value_or(0), ", sinks ", spec.sinks, ", shift ", spec.shift,
                ", seed ", spec.seed);
}

double AttentionResult::Value(int token, int head, int i) const {
  const size_t at = (static_cast<size_t>(token) * heads + head) * dim + i;
  return Decode(dtype, out.data() + at * SizeOf(dtype));
}

bool AttentionResult::SameBits(int token, const AttentionResult& other, int at, int count) const {
  const size_t row = static_cast<size_t>(heads) * dim * SizeOf(dtype);
  const auto h = static_cast<size_t>(heads);
  if (count == 0) {  // the vectors may be empty, and memcmp takes no null
    return true;
  }
  return std::memcmp(out.data() + token * row, other.out.data() + at * row, count * row) == 0 &&
         std::memcmp(lse.data() + token * h, other.lse.data() + at * h,
                     count * h * sizeof(float)) == 0;
}

// The pool's pages are dealt to the sequences in a random order, with some left over; every slot
// that belongs to no position is NaN, and so are the gaps of strided layouts.
AttentionCase::AttentionCase(const AttentionSpec& spec) : spec_(spec) {
  cu_q_lens_ = {0};
  int needed = 0;
  for (size_t b = 0; b < spec.kv_lens.size(); ++b) {
    tokens_ += spec.q_lens[b];
    cu_q_lens_.push_back(tokens_);
    kv_lens_.push_back(spec.kv_lens[b]);
    const int pages = (spec.kv_lens[b] + spec.page_size - 1) / spec.page_size;
    needed += pages;
    max_pages_ = std::max(max_pages_, pages);
  }
  pages_ = needed + 3;
  std::vector<int32_t> order(static_cast<size_t>(pages_));
  std::iota(order.begin(), order.end(), 0);
  Rng rng(spec.page_seed);
  for (size_t i = order.size(); i > 1; --i) {
    std::swap(order[i - 1], order[static_cast<size_t>(rng.Below(static_cast<int64_t>(i)))]);
  }
  // Entries that no position needs hold an invalid page number.
  table_.assign(spec.kv_lens.size() * static_cast<size_t>(max_pages_ + kTableGap), -7);
  size_t next = 0;
  for (size_t b = 0; b < spec.kv_lens.size(); ++b) {
    const int pages = (spec.kv_lens[b] + spec.page_size - 1) / spec.page_size;
    for (int i = 0; i < pages; ++i) {
      table_[b * static_cast<size_t>(max_pages_ + kTableGap) + static_cast<size_t>(i)] =
          order[next++];
    }
  }
  for (int head = 0; spec.sinks && head < heads(); ++head) {
    sinks_.push_back(static_cast<float>(head % 5) - 1.0f);
  }
  FillPool();
  FillQueries();
}

PagedKv AttentionCase::values() const {
  if (spec_.value_offset < 0) {
    return values_->view();
  }
  PagedKv kv = keys_->view();
  const KvCoding coding = KeyCoding(spec_);
  const int64_t bytes = coding.format == KvFormat::kPlain
                            ? spec_.value_offset * static_cast<int64_t>(SizeOf(coding.dtype))
                            : spec_.value_offset / 32 * BlockBytes(coding.format);
  kv.data = static_cast<const uint8_t*>(kv.data) + bytes;
  kv.head_dim = ValueDim(spec_);
  return kv;
}

std::vector<double> AttentionCase::Content(bool value, int seq, int kv_len, int position,
                                           int head) const {
  Rng rng = VectorRng(spec_, value ? 1 : 0, seq, position, head);
  const int dim = value ? ValueDim(spec_) : spec_.dim;
  std::vector<double> x;
  x.reserve(static_cast<size_t>(dim));
  for (int i = 0; i < dim; ++i) {
    x.push_back(Element(spec_, value, seq, kv_len, position, i, rng));
  }
  return x;
}

void AttentionCase::FillPool() {
  const bool apart = spec_.value_offset < 0;
  CodedPoolShape shape{pages_,    spec_.page_size, spec_.kv_heads,
                       spec_.dim, spec_.layout,    spec_.shift};
  keys_ = std::make_shared<CodedPool>(KeyCoding(spec_), shape);
  if (apart) {
    shape.dim = ValueDim(spec_);
    values_ = std::make_shared<CodedPool>(ValueCoding(spec_), shape);
  }
  for (size_t b = 0; b < kv_lens_.size(); ++b) {
    const int seq = static_cast<int>(b) + spec_.first_sequence;
    k_.emplace_back();
    v_.emplace_back();
    for (int position = 0; position < kv_lens_[b]; ++position) {
      const int32_t page = table_[b * static_cast<size_t>(max_pages_ + kTableGap) +
                                  static_cast<size_t>(position / spec_.page_size)];
      for (int head = 0; head < spec_.kv_heads; ++head) {
        std::vector<double> key = Content(false, seq, kv_lens_[b], position, head);
        keys_->Put(page, position % spec_.page_size, head, key);
        k_.back().insert(k_.back().end(), key.begin(), key.end());
        if (apart) {
          std::vector<double> value = Content(true, seq, kv_lens_[b], position, head);
          values_->Put(page, position % spec_.page_size, head, value);
          v_.back().insert(v_.back().end(), value.begin(), value.end());
        } else {
          const auto first = key.begin() + spec_.value_offset;
          v_.back().insert(v_.back().end(), first, first + ValueDim(spec_));
        }
      }
    }
  }
  keys_->MakeReadOnly();
  if (apart) {
    values_->MakeReadOnly();
  }
}

void AttentionCase::FillQueries() {
  const size_t element = SizeOf(spec_.q_dtype);
  q_bytes_ =
      std::make_shared<GuardedBuffer>(static_cast<size_t>(tokens_) * heads() * spec_.dim * element +
                                          static_cast<size_t>(spec_.shift),
                                      spec_.shift == 0);
  for (size_t b = 0; b < kv_lens_.size(); ++b) {
    for (int query = 0; query < spec_.q_lens[b]; ++query) {
      const int position = kv_lens_[b] - spec_.q_lens[b] + query;
      for (int head = 0; head < heads(); ++head) {
        Rng rng = VectorRng(spec_, 2, static_cast<int>(b) + spec_.first_sequence, position, head);
        for (int i = 0; i < spec_.dim; ++i) {
          const float x = Rounded(spec_.q_dtype, rng.Normal());
          PutElement(spec_.q_dtype, x, q_bytes_->data() + q_.size() * element);
          q_.push_back(x);
        }
      }
    }
  }
  q_bytes_->MakeReadOnly();
}

HeadsView AttentionCase::q() const {
  return {q_bytes_->data(), spec_.q_dtype, tokens_,
          heads(),          spec_.dim,     int64_t{heads()} * spec_.dim,
          spec_.dim};
}

PagedBatch AttentionCase::batch() const {
  PagedBatch batch;
  if (!spec_.implicit_q_lens) {
    batch.cu_q_lens = cu_q_lens_;
  }
  batch.kv_lens = kv_lens_;
  batch.page_table = table_.data();
  batch.max_pages = max_pages_;
  batch.page_table_stride = max_pages_ + kTableGap;
  return batch;
}

AttentionOptions AttentionCase::options() const {
  AttentionOptions options;
  options.scale = spec_.scale;
  options.causal = spec_.causal;
  options.window = spec_.window;
  options.window_right = spec_.window_right;
  options.soft_cap = spec_.soft_cap;
  options.sinks = sinks_;
  return options;
}

AttentionResult AttentionCase::Run(ThreadPool* pool) const {
  const size_t element = SizeOf(spec_.q_dtype);
  // Leaves gaps between heads and tokens, and fills everything with a pattern before the call.
  const int dim = ValueDim(spec_);
  const int64_t head_stride = dim + 3;
  const int64_t token_stride = heads() * head_stride + 5;
  const int64_t lse_stride = heads() + 2;
  std::vector<uint8_t> out(static_cast<size_t>(tokens_ * token_stride + 64) * element, kPattern);
  std::vector<float> lse(static_cast<size_t>(tokens_ * lse_stride + 4), -123.0f);
  AttentionOut view{out.data() + static_cast<size_t>(spec_.shift), token_stride, head_stride,
                    lse.data(), lse_stride};
  AttentionOptions options = this->options();
  options.pool = pool;
  PagedAttention(q(), keys(), values(), batch(), view, options);

  AttentionResult result;
  result.tokens = tokens_;
  result.heads = heads();
  result.dim = dim;
  result.dtype = spec_.q_dtype;
  const size_t row_bytes = static_cast<size_t>(dim) * element;
  for (int64_t token = 0; token < tokens_; ++token) {
    for (int64_t head = 0; head < heads(); ++head) {
      uint8_t* row = out.data() + spec_.shift +
                     static_cast<size_t>(token * token_stride + head * head_stride) * element;
      result.out.insert(result.out.end(), row, row + row_bytes);
      std::fill_n(row, row_bytes, kPattern);
      float& one = lse[static_cast<size_t>(token * lse_stride + head)];
      result.lse.push_back(one);
      one = -123.0f;
    }
  }
  if (std::any_of(out.begin(), out.end(), [](uint8_t byte) { return byte != kPattern; })) {
    result.damage = "bytes between the rows of out were written";
  }
  if (std::any_of(lse.begin(), lse.end(), [](float x) { return x != -123.0f; })) {
    result.damage += " elements between the rows of lse were written";
  }
  return result;
}

}  // namespace riffle::test
