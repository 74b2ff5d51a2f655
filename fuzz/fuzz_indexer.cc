// IndexerTopK against TopKPerRow over IndexerLogits, on batches of any lengths, pages and elements.
// Both must refuse a call that breaks the contract, and write nothing.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <vector>

#include "fuzz/bytes.h"
#include "riffle/error.h"
#include "riffle/indexer.h"
#include "riffle/topk.h"

namespace {

using riffle::DType;
using riffle::IndexKeyFormat;
using riffle::fuzz::Bytes;

constexpr int32_t kUntouched = 1234567;

void Expect(bool ok) {
  if (!ok) std::abort();
}

class Call {
 public:
  explicit Call(Bytes bytes) : bytes_(bytes) {
    heads_ = bytes_.Between(1, 9);
    dim_ = bytes_.OneIn(2) ? 32 : 64;
    num_pages_ = bytes_.Between(1, 30);
    page_size_ = bytes_.Between(1, 40);
    max_pages_ = bytes_.Between(0, 30);
    ratio_ = bytes_.OneIn(3) ? bytes_.Between(1, 5) : 1;
    if (bytes_.OneIn(60)) ratio_ = bytes_.Take<int64_t>();
    k_ = bytes_.Between(1, bytes_.OneIn(2) ? 8 : 300);
    if (bytes_.OneIn(60)) k_ = bytes_.Take<int16_t>();
    relu_ = !bytes_.OneIn(3);
    TakeBatch();
    TakeKeys();
    q_dtype_ = key_dtype_ == DType::kI8 || bytes_.OneIn(3) ? DType::kF32 : DType::kBF16;
    Elements(q_dtype_, tokens_ * heads_ * dim_, q_);
    weighted_ = bytes_.OneIn(2);
    for (int64_t i = 0; i < tokens_ * heads_; ++i) {
      weights_.push_back(static_cast<float>(static_cast<int64_t>(bytes_.Take<uint8_t>() % 5) - 2));
    }
  }

  void Run() {
    const riffle::HeadsView q{q_.data(), q_dtype_, tokens_, heads_, dim_, heads_ * dim_, dim_};
    const riffle::IndexWeights weights{weighted_ ? weights_.data() : nullptr, heads_};
    const riffle::PagedBatch batch{cu_q_lens_, kv_lens_, table_.data(), max_pages_, max_pages_};
    const bool valid = Valid();
    const int64_t cols = valid ? riffle::MaxIndexKeys(batch, ratio_) : 64;
    std::vector<float> logits(static_cast<size_t>(tokens_ * cols), kUntouched);
    riffle::IndexerOptions options;
    options.activation = relu_ ? riffle::IndexActivation::kRelu : riffle::IndexActivation::kNone;
    options.ratio = ratio_;
    const bool scored = Accepts([&] {
      riffle::IndexerLogits(q, weights, Keys(), batch, {logits.data(), cols, cols}, options);
    });
    Expect(scored == valid);
    const auto k = static_cast<size_t>(std::max<int64_t>(k_, 1));
    std::vector<int32_t> top(static_cast<size_t>(tokens_) * k, kUntouched);
    riffle::IndexTopKOptions of_top;
    of_top.activation = options.activation;
    of_top.ratio = ratio_;
    const bool selected = Accepts([&] {
      riffle::IndexerTopK(q, weights, Keys(), batch, k_, {top.data(), static_cast<int64_t>(k)},
                          of_top);
    });
    Expect(selected == (valid && k_ >= 1));
    if (!selected) {
      Expect(std::all_of(top.begin(), top.end(), [](int32_t x) { return x == kUntouched; }));
    }
    if (!scored) {
      Expect(std::all_of(logits.begin(), logits.end(), [](float x) { return x == kUntouched; }));
    }
    if (scored && selected && tokens_ > 0) {
      Compare(logits, cols, top);
    }
  }

 private:
  template <class F>
  static bool Accepts(const F& f) {
    try {
      f();
      return true;
    } catch (const riffle::Error&) {
      return false;
    }
  }

  int32_t UsuallyBetween(int64_t first, int64_t last) {
    return bytes_.OneIn(60) ? bytes_.Take<int32_t>()
                            : static_cast<int32_t>(bytes_.Between(first, last));
  }

  void TakeBatch() {
    const auto count = static_cast<size_t>(bytes_.Between(0, 3));
    const bool decode = bytes_.OneIn(3);
    if (!decode) cu_q_lens_.push_back(bytes_.OneIn(60) ? bytes_.Take<int32_t>() : 0);
    for (size_t b = 0; b < count; ++b) {
      kv_lens_.push_back(UsuallyBetween(0, max_pages_ * page_size_));
      if (!decode) {
        cu_q_lens_.push_back(bytes_.OneIn(60) ? bytes_.Take<int32_t>()
                                              : static_cast<int32_t>(std::clamp(
                                                    cu_q_lens_.back() + bytes_.Between(0, 20),
                                                    int64_t{0}, int64_t{40})));
      }
      for (int64_t i = 0; i < max_pages_; ++i) table_.push_back(UsuallyBetween(0, num_pages_ - 1));
    }
    tokens_ = decode ? static_cast<int64_t>(count) : std::clamp(cu_q_lens_.back(), 0, 40);
    if (bytes_.OneIn(60)) ++tokens_;
  }

  // Small integers, which tie, and now and then any bits.
  void Elements(DType dtype, int64_t count, std::vector<uint8_t>& to) {
    const auto element = static_cast<int64_t>(SizeOf(dtype));
    to.resize(static_cast<size_t>(count * element));
    const uint32_t seed = bytes_.Take<uint16_t>();
    const bool wild = bytes_.OneIn(4);
    for (int64_t i = 0; i < count; ++i) {
      uint32_t x = (static_cast<uint32_t>(i) + seed) * 0x9e3779b1u;
      x = (x ^ (x >> 15)) * 0x85ebca6bu;
      const auto value = static_cast<float>(static_cast<int>(x >> 24) % 3 - 1);
      uint32_t bits;
      std::memcpy(&bits, &value, sizeof(bits));
      if (dtype == DType::kBF16) {
        bits >>= 16;
      } else if (dtype == DType::kF16) {
        bits = value == 0 ? 0 : value < 0 ? 0xbc00 : 0x3c00;
      } else if (dtype == DType::kE4M3) {
        bits = value == 0 ? 0 : value < 0 ? 0xb8 : 0x38;
      } else if (dtype != DType::kF32) {
        bits = static_cast<uint32_t>(static_cast<int>(value));
      }
      if (wild && (x & 0x3ff) == 7) bits = x ^ seed * 77777;
      std::memcpy(to.data() + i * element, &bits, static_cast<size_t>(element));
    }
  }

  void TakeKeys() {
    constexpr DType kDTypes[] = {DType::kF32, DType::kF16, DType::kBF16, DType::kE4M3, DType::kI8};
    key_dtype_ = kDTypes[bytes_.Between(0, 4)];
    fused_ = key_dtype_ == DType::kE4M3 && bytes_.OneIn(2);
    const int64_t slots = num_pages_ * page_size_;
    Elements(key_dtype_, slots * (dim_ + (fused_ ? 4 : 0)), keys_);
    scaled_ = key_dtype_ == DType::kI8 || bytes_.OneIn(2);
    for (int64_t i = 0; i < slots; ++i) {
      scales_.push_back(bytes_.OneIn(200) ? bytes_.Take<float>() : 0.5f);
    }
    for (int64_t page = 0; fused_ && page < num_pages_; ++page) {
      std::memcpy(keys_.data() + page * page_size_ * (dim_ + 4) + page_size_ * dim_,
                  scales_.data() + page * page_size_, static_cast<size_t>(page_size_) * 4);
    }
  }

  riffle::IndexKeys Keys() const {
    riffle::IndexKeys keys{keys_.data(), key_dtype_,        num_pages_, page_size_,
                           dim_,         page_size_ * dim_, dim_};
    if (fused_) {
      keys.dtype = DType::kU8;
      keys.format = IndexKeyFormat::kDeepGemm;
      keys.page_stride = page_size_ * (dim_ + 4);
    } else if (scaled_) {
      keys.scales = {scales_.data(), page_size_, 1};
    }
    return keys;
  }

  // The contract, in the caller's terms.
  bool Valid() const {
    const auto sequences = static_cast<int64_t>(kv_lens_.size());
    if (ratio_ < 1 || ratio_ > std::numeric_limits<int32_t>::max()) return false;
    if (cu_q_lens_.empty() ? tokens_ != sequences
                           : cu_q_lens_.front() != 0 || cu_q_lens_.back() != tokens_) {
      return false;
    }
    for (size_t b = 0; b < kv_lens_.size(); ++b) {
      if (!cu_q_lens_.empty() && cu_q_lens_[b + 1] < cu_q_lens_[b]) return false;
      const int64_t keys = kv_lens_[b] / ratio_;
      if (kv_lens_[b] < 0 || keys > max_pages_ * page_size_ ||
          kv_lens_[b] > std::numeric_limits<int32_t>::max() - 1023) {
        return false;
      }
      for (int64_t i = 0; i < (keys + page_size_ - 1) / page_size_; ++i) {
        const int32_t page = table_[b * static_cast<size_t>(max_pages_) + static_cast<size_t>(i)];
        if (page < 0 || page >= num_pages_) return false;
      }
    }
    return true;
  }

  void Compare(const std::vector<float>& logits, int64_t cols,
               const std::vector<int32_t>& top) const {
    std::vector<int32_t> starts(static_cast<size_t>(tokens_)), ends;
    for (size_t b = 0; b < kv_lens_.size(); ++b) {
      const int64_t q_len = cu_q_lens_.empty() ? 1 : cu_q_lens_[b + 1] - cu_q_lens_[b];
      for (int64_t i = 0; i < q_len; ++i) {
        const int64_t position = kv_lens_[b] - q_len + i;
        ends.push_back(position < 0 ? 0 : static_cast<int32_t>((position + 1) / ratio_));
      }
    }
    std::vector<int32_t> want(top.size());
    if (cols == 0) {
      std::fill(want.begin(), want.end(), -1);
    } else {
      riffle::TopKPerRow({logits.data(), DType::kF32, tokens_, cols, cols}, starts, ends, k_,
                         {want.data(), k_}, {.index_order_if_short = true});
    }
    Expect(want == top);
  }

  Bytes bytes_;
  int64_t heads_ = 1, dim_ = 32, num_pages_ = 1, page_size_ = 1, max_pages_ = 0, ratio_ = 1;
  int64_t k_ = 1, tokens_ = 0;
  bool relu_ = true, fused_ = false, scaled_ = false, weighted_ = false;
  DType key_dtype_ = DType::kF32, q_dtype_ = DType::kF32;
  std::vector<int32_t> cu_q_lens_, kv_lens_, table_;
  std::vector<uint8_t> q_, keys_;
  std::vector<float> weights_, scales_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Call(Bytes(data, size)).Run();
  return 0;
}
