#include "testing/attention_case.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "testing/distributions.h"
#include "testing/reference.h"
#include "testing/rng.h"
#include "testing/text.h"

namespace riffle::test {
namespace {

constexpr int kTableGap = 3;  // columns of a row of the table past what it needs
constexpr uint8_t kPattern = 0xa5;

double Normal(Rng& rng) {
  const double u = 1.0 - rng.Unit();
  return std::sqrt(-2.0 * std::log(u)) * std::cos(6.283185307179586 * rng.Unit());
}

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

float Element(const AttentionSpec& spec, bool value, int seq, int kv_len, int position, int i,
              Rng& rng) {
  const double x = Normal(rng);
  switch (spec.data) {
    case KvData::kHugeLogits:
      return Rounded(spec.kv_dtype, value ? x : 400 * x);
    case KvData::kOneHotKey:
      return Rounded(spec.kv_dtype, !value && position == 37 * (seq + 1) % kv_len ? 40 * x : x);
    case KvData::kEqualKeys:
      return Rounded(spec.kv_dtype, value ? x : 0.25);
    case KvData::kConstant:
      return Rounded(spec.kv_dtype, value ? 0.1 : 0.0);
    case KvData::kTiny:
      return Rounded(spec.kv_dtype, value ? x * (spec.kv_dtype == DType::kF16 ? 1e-6 : 3e-38) : x);
    case KvData::kVisibleNaN:
      if (position % 53 == 50 && (value ? i == 5 : seq % 2 == 1 && i == 0)) {
        return std::numeric_limits<float>::quiet_NaN();
      }
      return Rounded(spec.kv_dtype, x);
    case KvData::kInfiniteLater:
      if (value && position == kv_len - 1) {
        return i % 2 == 0 ? -std::numeric_limits<float>::infinity()
                          : std::numeric_limits<float>::infinity();
      }
      return Rounded(spec.kv_dtype, x);
    case KvData::kNormal:
      break;
  }
  return Rounded(spec.kv_dtype, x);
}

void PutElement(DType dtype, float value, uint8_t* at) {
  const uint32_t bits = std::isnan(value)   ? NaN(dtype, 0)
                        : std::isinf(value) ? (value > 0 ? PlusInf(dtype) : MinusInf(dtype))
                                            : Encode(dtype, value);
  Store(dtype, bits, at);
}

}  // namespace

std::string Describe(const AttentionSpec& spec) {
  std::string lens;
  for (size_t b = 0; b < std::min<size_t>(spec.kv_lens.size(), 6); ++b) {
    lens += Concat(" ", spec.q_lens[b], "/", spec.kv_lens[b]);
  }
  return Concat("q/kv lens", lens, spec.kv_lens.size() > 6 ? "..." : "", ", ", spec.kv_heads, "x",
                spec.group, " heads of ", spec.dim, ", page ", spec.page_size, ", q ",
                Name(spec.q_dtype), ", kv ", spec.int8 ? "int8 by " : "", Name(spec.kv_dtype),
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
  // Entries that no position needs name no page.
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
}

int64_t AttentionCase::KvOffset(int page, int token, int head) const {
  const PagedKv kv = keys();
  return page * kv.page_stride + token * kv.token_stride + head * kv.head_stride;
}

PagedKv AttentionCase::Kv(const GuardedBuffer& buffer, const GuardedBuffer* scales) const {
  PagedKv kv{buffer.data(),
             spec_.int8 ? DType::kI8 : spec_.kv_dtype,
             pages_,
             spec_.page_size,
             spec_.kv_heads,
             spec_.dim,
             0,
             0,
             0};
  const int64_t d = spec_.dim;
  if (spec_.layout == Layout::kHND) {
    kv.token_stride = d;
    kv.head_stride = spec_.page_size * d;
    kv.page_stride = spec_.kv_heads * kv.head_stride;
  } else if (spec_.layout == Layout::kNHD) {
    kv.head_stride = d;
    kv.token_stride = spec_.kv_heads * d + 8;  // with a gap
    kv.page_stride = spec_.page_size * kv.token_stride;
  } else {
    kv.token_stride = d;
    kv.page_stride = spec_.page_size * d;
    kv.head_stride = pages_ * kv.page_stride;
  }
  if (scales != nullptr) {
    // In an order of their own: [heads, pages, page_size] or [pages, page_size, heads].
    const bool heads_first = spec_.layout == Layout::kJAX;
    kv.scales = {.data = scales->data(),
                 .dtype = spec_.kv_dtype,
                 .token_stride = heads_first ? 1 : spec_.kv_heads,
                 .head_stride = heads_first ? int64_t{pages_} * spec_.page_size : 1,
                 .divisor = 127.5f};
    kv.scales.page_stride = spec_.page_size * kv.scales.token_stride;
  }
  return kv;
}

void AttentionCase::PutVector(bool value, int page, int token, int head, std::vector<float>& x) {
  uint8_t* const to =
      (value ? values_ : keys_)->data() +
      static_cast<size_t>(KvOffset(page, token, head)) * (spec_.int8 ? 1 : SizeOf(spec_.kv_dtype));
  if (!spec_.int8) {
    for (size_t i = 0; i < x.size(); ++i) {
      PutElement(spec_.kv_dtype, x[i], to + i * SizeOf(spec_.kv_dtype));
    }
    return;
  }
  float largest = 0;
  for (const float v : x) {
    largest = std::isnan(v) || std::abs(v) > largest ? std::abs(v) : largest;
  }
  const KvScales scales = (value ? values() : keys()).scales;
  const int64_t at =
      page * scales.page_stride + token * scales.token_stride + head * scales.head_stride;
  const float scale = std::isfinite(largest) ? Rounded(spec_.kv_dtype, largest) : largest;
  PutElement(spec_.kv_dtype, scale,
             (value ? value_scales_ : key_scales_)->data() +
                 static_cast<size_t>(at) * SizeOf(spec_.kv_dtype));
  for (size_t i = 0; i < x.size(); ++i) {
    const double steps = scale == 0 ? 0.0 : std::nearbyint(x[i] / double{scale} * 127.5);
    // Without a number of steps (all is NaN or infinite) the sign is what is left.
    const int stored = std::isfinite(scale) ? static_cast<int>(std::clamp(steps, -128.0, 127.0))
                                            : (x[i] < 0 ? -1 : 1);
    to[i] = static_cast<uint8_t>(stored);
    x[i] = static_cast<float>(stored * double{scale} / 127.5);
  }
}

void AttentionCase::FillPool() {
  const size_t element = spec_.int8 ? 1 : SizeOf(spec_.kv_dtype);
  const int64_t gap = spec_.layout == Layout::kNHD ? 8 : 0;
  const auto total = static_cast<size_t>(int64_t{pages_} * spec_.page_size *
                                         (int64_t{spec_.kv_heads} * spec_.dim + gap));
  keys_ = std::make_shared<GuardedBuffer>(total * element + static_cast<size_t>(spec_.shift),
                                          spec_.shift == 0);
  values_ = std::make_shared<GuardedBuffer>(total * element + static_cast<size_t>(spec_.shift),
                                            spec_.shift == 0);
  for (const GuardedBuffer* buffer : {&*keys_, &*values_}) {
    for (size_t i = 0; i < total; ++i) {
      if (spec_.int8) {
        buffer->data()[i] = 0x80;
      } else {
        Store(spec_.kv_dtype, NaN(spec_.kv_dtype, 0), buffer->data() + i * element);
      }
    }
  }
  if (spec_.int8) {
    const auto tokens = static_cast<size_t>(pages_ * spec_.page_size * spec_.kv_heads);
    for (std::shared_ptr<GuardedBuffer>* scales : {&key_scales_, &value_scales_}) {
      *scales = std::make_shared<GuardedBuffer>(
          tokens * SizeOf(spec_.kv_dtype) + static_cast<size_t>(spec_.shift), spec_.shift == 0);
      for (size_t i = 0; i < tokens; ++i) {
        Store(spec_.kv_dtype, NaN(spec_.kv_dtype, 0),
              (*scales)->data() + i * SizeOf(spec_.kv_dtype));
      }
    }
  }
  for (size_t b = 0; b < kv_lens_.size(); ++b) {
    const int seq = static_cast<int>(b) + spec_.first_sequence;
    k_.emplace_back();
    v_.emplace_back();
    for (int position = 0; position < kv_lens_[b]; ++position) {
      const int32_t page = table_[b * static_cast<size_t>(max_pages_ + kTableGap) +
                                  static_cast<size_t>(position / spec_.page_size)];
      for (int head = 0; head < spec_.kv_heads; ++head) {
        for (const bool value : {false, true}) {
          Rng rng = VectorRng(spec_, value ? 1 : 0, seq, position, head);
          std::vector<float> x;
          for (int i = 0; i < spec_.dim; ++i) {
            x.push_back(Element(spec_, value, seq, kv_lens_[b], position, i, rng));
          }
          PutVector(value, page, position % spec_.page_size, head, x);
          std::vector<float>& all = (value ? v_ : k_).back();
          all.insert(all.end(), x.begin(), x.end());
        }
      }
    }
  }
  const size_t q_element = SizeOf(spec_.q_dtype);
  q_bytes_ = std::make_shared<GuardedBuffer>(
      static_cast<size_t>(tokens_) * heads() * spec_.dim * q_element +
          static_cast<size_t>(spec_.shift),
      spec_.shift == 0);
  for (size_t b = 0; b < kv_lens_.size(); ++b) {
    for (int query = 0; query < spec_.q_lens[b]; ++query) {
      const int position = kv_lens_[b] - spec_.q_lens[b] + query;
      for (int head = 0; head < heads(); ++head) {
        Rng rng = VectorRng(spec_, 2, static_cast<int>(b) + spec_.first_sequence, position, head);
        for (int i = 0; i < spec_.dim; ++i) {
          const float x = Rounded(spec_.q_dtype, Normal(rng));
          PutElement(spec_.q_dtype, x, q_bytes_->data() + q_.size() * q_element);
          q_.push_back(x);
        }
      }
    }
  }
  keys_->MakeReadOnly();
  values_->MakeReadOnly();
  q_bytes_->MakeReadOnly();
  if (spec_.int8) {
    key_scales_->MakeReadOnly();
    value_scales_->MakeReadOnly();
  }
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
  // Gaps between heads and between tokens, patterned, as is everything before results are written.
  const int64_t head_stride = spec_.dim + 3;
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
  result.dim = spec_.dim;
  result.dtype = spec_.q_dtype;
  const size_t row_bytes = static_cast<size_t>(spec_.dim) * element;
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
