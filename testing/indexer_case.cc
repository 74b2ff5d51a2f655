#include "testing/indexer_case.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <sstream>
#include <utility>

#include "testing/reference.h"
#include "testing/rng.h"

namespace riffle::test {
namespace {

double DecodeE4M3(int code) {
  const int exponent = code >> 3 & 15;
  const int mantissa = code & 7;
  double value =
      exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(1 + mantissa / 8.0, exponent - 7);
  if ((code & 127) == 127) {
    value = std::numeric_limits<double>::quiet_NaN();
  }
  return (code & 128) != 0 ? -value : value;
}

double ValueOfE4M3(int code) {
  static const std::vector<double> values = [] {
    std::vector<double> all;
    for (int c = 0; c < 256; ++c) {
      all.push_back(DecodeE4M3(c));
    }
    return all;
  }();
  return values[static_cast<size_t>(code)];
}

// Fills a row of MXFP4 and its scales, and values[0, dim) with the values that they encode.
void PutMxFp4(int dim, bool ties, bool special, Rng& rng, uint8_t* row, uint8_t* scales,
              float* values) {
  constexpr double kMagnitudes[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
  for (int i = 0; i < dim; ++i) {
    if (i % 32 == 0) {
      scales[i / 32] = static_cast<uint8_t>(ties                       ? 127
                                            : special && rng.OneIn(20) ? 255
                                                                       : rng.Between(122, 129));
    }
    const int code = static_cast<int>(rng.Below(16));
    row[i / 2] = static_cast<uint8_t>(i % 2 == 0 ? code : row[i / 2] | code << 4);
    const int scale = scales[i / 32];
    const double value = scale == 255 ? std::numeric_limits<double>::quiet_NaN()
                                      : std::ldexp(kMagnitudes[code & 7], scale - 127);
    values[i] = static_cast<float>(code >= 8 ? -value : value);
  }
}

// Stores x rounded to the dtype, or a special element. Returns the exact value of what was stored.
float Put(DType dtype, double x, bool special, Rng& rng, uint8_t* to) {
  if (dtype == DType::kI8) {
    const auto code = static_cast<int8_t>(special ? rng.Between(-128, 127)
                                                  : std::clamp(std::lround(x * 40), -127l, 127l));
    std::memcpy(to, &code, 1);
    return code;
  }
  if (dtype == DType::kE4M3) {
    int code = static_cast<int>(rng.Below(256));
    if (!special) {  // the nearest code
      int best = 0;
      for (int c = 0; c < 256; ++c) {
        if (std::fabs(ValueOfE4M3(c) - x) < std::fabs(ValueOfE4M3(best) - x)) {
          best = c;
        }
      }
      code = best;
    }
    *to = static_cast<uint8_t>(code);
    return static_cast<float>(ValueOfE4M3(code));
  }
  uint32_t bits = Encode(dtype, static_cast<float>(x));
  if (special) {
    switch (rng.Below(3)) {
      case 0:
        bits = NaN(dtype, rng.Below(8));
        break;
      case 1:
        bits = PlusInf(dtype);
        break;
      default:
        bits = MinusInf(dtype);
    }
  }
  Store(dtype, bits, to);
  return static_cast<float>(Decode(dtype, to));
}

}  // namespace

std::string Describe(const IndexerSpec& spec) {
  std::ostringstream text;
  text << "q " << Name(spec.q_dtype) << " keys " << Name(spec.key_dtype) << " ("
       << Name(spec.format) << ") heads " << spec.heads << " dim " << spec.head_dim << " page "
       << spec.page_size << " ratio " << spec.ratio << " relu "
       << (spec.activation == IndexActivation::kRelu) << " weights " << spec.weights << " scales "
       << spec.scales << " ties " << spec.ties << " specials " << spec.specials << " seed "
       << spec.seed;
  for (size_t b = 0; b < spec.kv_lens.size(); ++b) {
    text << " [" << spec.q_lens[b] << " of " << spec.kv_lens[b] << "]";
  }
  return text.str();
}

IndexerCase::IndexerCase(const IndexerSpec& spec) : spec_(spec) {
  Rng rng(spec.seed + 1);
  MakePages(rng);
  MakeQueries(rng);
  MakeKeys(rng);
  q_bytes_->MakeReadOnly();
  key_bytes_->MakeReadOnly();
}

// Close to normal; with ties -1, 0 or 1.
double IndexerCase::Value(Rng& rng) const {
  double sum = -6;
  for (int i = 0; i < 12; ++i) {
    sum += rng.Unit();
  }
  return spec_.ties ? static_cast<double>(rng.Between(-1, 1)) : sum;
}

// Lengths, and a page table whose pages are in no order.
void IndexerCase::MakePages(Rng& rng) {
  const IndexerSpec& spec = spec_;
  cu_q_lens_ = {0};
  int64_t pages = 0;
  for (size_t b = 0; b < spec.kv_lens.size(); ++b) {
    kv_lens_.push_back(spec.kv_lens[b]);
    cu_q_lens_.push_back(cu_q_lens_.back() + spec.q_lens[b]);
    sequence_.insert(sequence_.end(), static_cast<size_t>(spec.q_lens[b]), static_cast<int32_t>(b));
    const int64_t own = (spec.kv_lens[b] / spec.ratio + spec.page_size - 1) / spec.page_size;
    max_pages_ = std::max(max_pages_, own);
    pages += own;
  }
  tokens_ = cu_q_lens_.back();
  pages_ = pages + 2;  // two pages that belong to no sequence
  std::vector<int32_t> order(static_cast<size_t>(pages_));
  for (size_t i = 0; i < order.size(); ++i) {
    order[i] = static_cast<int32_t>(i);
    std::swap(order[i], order[static_cast<size_t>(rng.Below(static_cast<int64_t>(i) + 1))]);
  }
  table_.assign(spec.kv_lens.size() * static_cast<size_t>(max_pages_), -7);
  size_t next = 0;
  for (size_t b = 0; b < spec.kv_lens.size(); ++b) {
    const int64_t own = (spec.kv_lens[b] / spec.ratio + spec.page_size - 1) / spec.page_size;
    for (int64_t i = 0; i < own; ++i) {
      table_[b * static_cast<size_t>(max_pages_) + static_cast<size_t>(i)] = order[next++];
    }
  }
}

// Weights of heads, scales of keys, and q.
void IndexerCase::MakeQueries(Rng& rng) {
  const IndexerSpec& spec = spec_;
  for (int64_t i = 0; i < tokens_ * spec.heads; ++i) {
    weights_.push_back(spec.ties ? std::ldexp(1.0f, static_cast<int>(rng.Below(2)))
                                 : static_cast<float>(Value(rng)));
  }
  const bool mxfp4 = spec.format == IndexKeyFormat::kMxFp4;
  const bool scaled = !mxfp4 && (spec.scales || spec.key_dtype == DType::kI8 ||
                                 spec.format == IndexKeyFormat::kDeepGemm);
  for (int64_t i = 0; i < pages_ * spec.page_size; ++i) {
    scales_.push_back(!scaled || spec.ties ? 1.0f : static_cast<float>(rng.Unit() + 0.1));
  }
  const auto q_element = static_cast<int64_t>(SizeOf(spec.q_dtype));
  q_bytes_ = std::make_unique<GuardedBuffer>(
      static_cast<size_t>(tokens_ * spec.heads * spec.head_dim * q_element), true);
  q_.resize(static_cast<size_t>(tokens_ * spec.heads * spec.head_dim));
  for (size_t i = 0; i < q_.size(); ++i) {
    const bool special = spec.specials && rng.OneIn(spec.head_dim * 9);
    q_[i] = Put(spec.q_dtype, Value(rng), special, rng,
                q_bytes_->data() + static_cast<int64_t>(i) * q_element);
  }
}

void IndexerCase::MakeKeys(Rng& rng) {
  const IndexerSpec& spec = spec_;
  const bool mxfp4 = spec.format == IndexKeyFormat::kMxFp4;
  const int64_t slots = pages_ * spec.page_size;
  const auto element = static_cast<int64_t>(SizeOf(spec.key_dtype));
  const bool deepgemm = spec.format == IndexKeyFormat::kDeepGemm;
  const int64_t row_bytes = mxfp4 ? spec.head_dim / 2 : spec.head_dim * element;
  const int64_t page_bytes = spec.page_size * (row_bytes + (deepgemm || mxfp4 ? 4 : 0));
  key_bytes_ = std::make_unique<GuardedBuffer>(static_cast<size_t>(pages_ * page_bytes), true);
  k_.resize(static_cast<size_t>(slots * spec.head_dim));
  for (int64_t slot = 0; slot < slots; ++slot) {
    uint8_t* page = key_bytes_->data() + slot / spec.page_size * page_bytes;
    uint8_t* row = page + slot % spec.page_size * row_bytes;
    if (mxfp4) {
      PutMxFp4(spec.head_dim, spec.ties, spec.specials, rng, row,
               page + spec.page_size * row_bytes + slot % spec.page_size * 4,
               k_.data() + slot * spec.head_dim);
      continue;
    }
    for (int64_t i = 0; i < spec.head_dim; ++i) {
      const bool special = spec.specials && rng.OneIn(spec.head_dim * 2);
      k_[static_cast<size_t>(slot * spec.head_dim + i)] =
          Put(spec.key_dtype, Value(rng), special, rng, row + i * element);
    }
    if (deepgemm) {
      std::memcpy(page + spec.page_size * spec.head_dim + slot % spec.page_size * 4,
                  &scales_[static_cast<size_t>(slot)], 4);
    }
  }
}

HeadsView IndexerCase::q() const {
  return {q_bytes_->data(), spec_.q_dtype,  tokens_,
          spec_.heads,      spec_.head_dim, int64_t{spec_.heads} * spec_.head_dim,
          spec_.head_dim};
}

IndexKeys IndexerCase::keys() const {
  IndexKeys keys{key_bytes_->data(), spec_.key_dtype, pages_,
                 spec_.page_size,    spec_.head_dim,  int64_t{spec_.page_size} * spec_.head_dim,
                 spec_.head_dim};
  keys.format = spec_.format;
  if (spec_.format == IndexKeyFormat::kDeepGemm) {
    keys.dtype = DType::kU8;
    keys.page_stride = int64_t{spec_.page_size} * (spec_.head_dim + 4);
  } else if (spec_.format == IndexKeyFormat::kMxFp4) {
    keys.dtype = DType::kU8;
    keys.page_stride = int64_t{spec_.page_size} * (spec_.head_dim / 2 + 4);
  } else if (spec_.scales || spec_.key_dtype == DType::kI8) {
    keys.scales = {scales_.data(), spec_.page_size, 1};
  }
  return keys;
}

PagedBatch IndexerCase::batch() const {
  PagedBatch batch;
  batch.cu_q_lens = cu_q_lens_;
  batch.kv_lens = kv_lens_;
  batch.page_table = table_.data();
  batch.max_pages = max_pages_;
  batch.page_table_stride = max_pages_;
  return batch;
}

int64_t IndexerCase::Visible(int64_t token) const {
  const auto b = static_cast<size_t>(Sequence(token));
  const int64_t position = int64_t{kv_lens_[b]} - cu_q_lens_[b + 1] + token;
  return position < 0 ? 0 : (position + 1) / spec_.ratio;
}

int32_t IndexerCase::Slot(int64_t sequence, int64_t position) const {
  const int64_t at = sequence * max_pages_ + position / spec_.page_size;
  return static_cast<int32_t>(table_[static_cast<size_t>(at)] * int64_t{spec_.page_size} +
                              position % spec_.page_size);
}

double IndexerCase::Score(int64_t token, int64_t key, double* bound) const {
  const auto slot = static_cast<size_t>(Slot(Sequence(token), key));
  const float* k = k_.data() + slot * static_cast<size_t>(spec_.head_dim);
  double score = 0;
  double magnitude = 0;
  for (int h = 0; h < spec_.heads; ++h) {
    const float* q = Q(token, h);
    double dot = 0;
    double size = 0;
    float max = 0;
    double key_sum = 0;
    for (int i = 0; i < spec_.head_dim; ++i) {
      dot += double{q[i]} * k[i];
      size += std::fabs(double{q[i]} * k[i]);
      max = std::max(max, std::fabs(q[i]));
      key_sum += std::fabs(k[i]);
    }
    const double error = (spec_.head_dim + spec_.heads + 8) * 0x1p-23 * size;
    // The error that rounding q to int8 may add.
    const bool rounded = spec_.key_dtype == DType::kI8 && spec_.q_dtype != DType::kI8;
    magnitude +=
        std::fabs(WeightOf(token, h)) * (error + (rounded ? max / 127.0 * 0.501 * key_sum : 0));
    const bool cut = spec_.activation == IndexActivation::kRelu && dot < 0;
    score += WeightOf(token, h) * (cut ? 0 : dot);
  }
  *bound = magnitude * scales_[slot];
  return score * scales_[slot];
}

float IndexerCase::ExactScore(int64_t token, int64_t key) const {
  const auto slot = static_cast<size_t>(Slot(Sequence(token), key));
  const float* k = k_.data() + slot * static_cast<size_t>(spec_.head_dim);
  float total = 0;
  for (int h = 0; h < spec_.heads; ++h) {
    int64_t dot = 0;
    for (int i = 0; i < spec_.head_dim; ++i) {
      dot += static_cast<int64_t>(Q(token, h)[i]) * static_cast<int64_t>(k[i]);
    }
    const int64_t value =
        spec_.activation == IndexActivation::kRelu ? std::max<int64_t>(dot, 0) : dot;
    const float product = WeightOf(token, h) * static_cast<float>(value);
    total = total + product;
  }
  return total * scales_[slot];
}

std::vector<float> IndexerCase::Logits(ThreadPool* pool) const {
  const int64_t columns = cols();
  std::vector<float> logits(static_cast<size_t>(tokens_ * columns), 77.0f);
  IndexerLogits(q(), weights(), keys(), batch(), {logits.data(), columns, columns}, options(pool));
  return logits;
}

}  // namespace riffle::test
