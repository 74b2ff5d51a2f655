// SparseAttention with hostile slots, lengths and shapes: a valid call must agree with softmax in
// double; any other must be refused and write nothing.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "fuzz/bytes.h"
#include "riffle/error.h"
#include "riffle/sparse_attention.h"
#include "testing/coded_pool.h"
#include "testing/kv_codings.h"
#include "testing/sparse_attention_reference.h"

namespace {

using riffle::DType;
using riffle::SparseRowFormat;
using riffle::fuzz::Bytes;

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

// The codings whose groups and blocks divide a row of `dim` elements.
std::vector<riffle::test::KvCoding> CodingsOf(int64_t dim) {
  std::vector<riffle::test::KvCoding> codings = riffle::test::AllKvCodings();
  std::erase_if(codings, [dim](const riffle::test::KvCoding& coding) {
    return coding.format != riffle::KvFormat::kPlain          ? dim % 32 != 0
           : coding.scaling == riffle::test::Scaling::kGroups ? dim % coding.group != 0
                                                              : false;
  });
  return codings;
}

struct Scope {
  riffle::SparseRows rows;
  std::vector<uint8_t> bytes;                     // the rows, unless they are in a pool
  std::unique_ptr<riffle::test::CodedPool> pool;  // plain rows in any coding
  int64_t shared = 1;                             // elements that share a scale
  std::vector<std::vector<double>> values;        // [slots]
  std::vector<int32_t> slots, lengths;
  int64_t cols = 0;
  bool has_lengths = false;
};

class Call {
 public:
  explicit Call(Bytes bytes) : bytes_(bytes) {
    tokens_ = bytes_.Between(0, 4);
    heads_ = static_cast<int>(bytes_.Between(1, 20));
    const auto kind = bytes_.Between(0, 3);
    dim_ = kind == 1 ? 576 : kind == 2 ? 512 : 16 * bytes_.Between(2, kind == 0 ? 6 : 16);
    ignore_ = bytes_.OneIn(3);
    value_dim_ = bytes_.OneIn(3) ? dim_ - (bytes_.OneIn(2) ? 32 : 16) : 0;
    if (bytes_.OneIn(50)) value_dim_ = bytes_.Take<int16_t>();
    const auto count = static_cast<size_t>(bytes_.Between(1, 3));
    for (size_t s = 0; s < count; ++s) {
      scopes_.push_back(MakeScope(kind));
    }
    if (bytes_.OneIn(3)) {
      for (int h = 0; h < heads_; ++h) {
        sinks_.push_back(bytes_.OneIn(20) ? bytes_.Take<float>() : Noise(bytes_.Take<uint8_t>()));
      }
    }
    for (int64_t i = 0; i < tokens_ * heads_ * dim_; ++i) {
      q_.push_back(2 * Noise(static_cast<uint32_t>(i) + 7000000));
    }
    out_.assign(static_cast<size_t>(tokens_ * heads_ * std::max<int64_t>(out_dim(), 0)),
                kUntouched);
    lse_.assign(static_cast<size_t>(tokens_ * heads_), kUntouched);
  }

  void Run() {
    std::vector<riffle::SparseScope> views;
    for (Scope& scope : scopes_) {
      if (scope.pool == nullptr) {
        scope.rows.data = scope.bytes.data();
      }
      views.push_back({scope.rows, scope.slots.data(), scope.cols, scope.cols,
                       scope.has_lengths ? scope.lengths.data() : nullptr});
    }
    riffle::SparseAttentionOptions options;
    options.scale = 0.125f;
    options.value_dim = value_dim_;
    options.sinks = sinks_;
    options.ignore_invalid = ignore_;
    bool accepted = true;
    try {
      riffle::SparseAttention(
          {q_.data(), DType::kF32, tokens_, heads_, dim_, heads_ * dim_, dim_}, views,
          {out_.data(), heads_ * out_dim(), out_dim(), lse_.data(), heads_}, options);
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
  int64_t out_dim() const { return value_dim_ != 0 ? value_dim_ : dim_; }

  Scope MakeScope(int64_t kind) {
    Scope scope;
    const int64_t slots = bytes_.Between(0, 40);
    scope.rows = {nullptr, DType::kF32, slots, dim_, dim_};
    if (kind == 1 && bytes_.OneIn(2)) {
      scope.rows = {nullptr, DType::kU8, slots, 576, 656, 0, 0, SparseRowFormat::kMla656};
    } else if (kind == 2 && bytes_.OneIn(2)) {
      scope.rows = {nullptr, DType::kU8, slots, 512, 0, 5, 5 * 584, SparseRowFormat::kMla584};
    } else if (kind < 3 && bytes_.OneIn(2)) {
      scope.rows.page_size = 3;
      scope.rows.page_stride = 3 * dim_ + (bytes_.OneIn(2) ? 8 : 0);
    }
    if (kind == 3) {
      FillCoded(scope);
    } else {
      Fill(scope);
    }
    scope.cols = bytes_.Between(0, 30);
    scope.has_lengths = bytes_.OneIn(2);
    for (int64_t t = 0; t < tokens_; ++t) {
      scope.lengths.push_back(bytes_.OneIn(60)
                                  ? bytes_.Take<int32_t>()
                                  : static_cast<int32_t>(bytes_.Between(0, scope.cols)));
      for (int64_t i = 0; i < scope.cols; ++i) {
        scope.slots.push_back(bytes_.OneIn(ignore_ ? 5 : 200)
                                  ? bytes_.Take<int32_t>()
                                  : static_cast<int32_t>(bytes_.Between(-1, slots - 1)));
      }
    }
    return scope;
  }

  // 64 bf16 of at most 1.
  static void FillRope(uint32_t seed, uint8_t* to) {
    for (uint32_t i = 0; i < 64; ++i) {
      const float x = Noise(seed + i);
      uint32_t bits;
      std::memcpy(&bits, &x, sizeof(bits));
      const auto upper = static_cast<uint16_t>(bits >> 16);
      std::memcpy(to + 2 * i, &upper, sizeof(upper));
    }
  }

  void Fill(Scope& scope) {
    const riffle::SparseRows& rows = scope.rows;
    const uint32_t seed = bytes_.Take<uint8_t>() * 100000u;
    const auto slots = static_cast<size_t>(rows.slots);
    scope.values.resize(slots);
    const int64_t page = rows.page_size == 0 ? std::max<int64_t>(rows.slots, 1) : rows.page_size;
    const int64_t stride = rows.page_size == 0 ? page * rows.row_stride : rows.page_stride;
    const auto element = static_cast<int64_t>(SizeOf(rows.dtype));
    scope.bytes.resize(static_cast<size_t>((rows.slots + page - 1) / page * stride * element));
    for (size_t i = 0; i < scope.bytes.size(); ++i) {
      const auto code = static_cast<uint8_t>(127 * (1 + Noise(seed + static_cast<uint32_t>(i))));
      scope.bytes[i] = (code & 127) > 0x50 ? uint8_t{0x31} : code;  // e4m3 up to 8
    }
    for (size_t s = 0; s < slots; ++s) {
      uint8_t* at = scope.bytes.data() + static_cast<int64_t>(s) / page * stride * element;
      const int64_t in_page = static_cast<int64_t>(s) % page;
      if (rows.format == SparseRowFormat::kMla656) {
        at += in_page * 656;
        for (int i = 0; i < 4; ++i) {
          const float scale = 0.01f * Noise(seed + static_cast<uint32_t>(s)) + 0.02f;
          std::memcpy(at + 512 + 4 * i, &scale, sizeof(scale));
        }
        FillRope(seed + static_cast<uint32_t>(s * 64), at + 528);
        scope.values[s] = riffle::test::DecodeMla656(at);
      } else if (rows.format == SparseRowFormat::kMla584) {
        uint8_t* scales = at + page * 576 + in_page * 8;
        std::fill_n(scales, 7, static_cast<uint8_t>(118 + s % 5));
        FillRope(seed + static_cast<uint32_t>(s * 64), at + in_page * 576 + 448);
        scope.values[s] = riffle::test::DecodeMla584(at + in_page * 576, scales);
      } else {
        at += in_page * rows.row_stride * element;
        for (int64_t i = 0; i < dim_; ++i) {
          const float x = Noise(seed + static_cast<uint32_t>(s * 1000 + static_cast<size_t>(i)));
          std::memcpy(at + i * element, &x, sizeof(x));
          scope.values[s].push_back(double{x});
        }
      }
    }
  }

  // Uses the last head of a pool in any coding and layout; the last page may be used in part.
  void FillCoded(Scope& scope) {
    using riffle::test::CodedPool;
    using riffle::test::KvCoding;
    const std::vector<KvCoding> codings = CodingsOf(dim_);
    const KvCoding& coding =
        codings[static_cast<size_t>(bytes_.Between(0, static_cast<int64_t>(codings.size()) - 1))];
    riffle::test::CodedPoolShape shape;
    shape.page_size = static_cast<int>(bytes_.Between(1, 17));
    shape.pages = static_cast<int>(scope.rows.slots / shape.page_size + 1);
    shape.heads = static_cast<int>(bytes_.Between(1, 2));
    shape.dim = static_cast<int>(dim_);
    shape.layout = static_cast<riffle::test::Layout>(bytes_.Between(0, 2));
    shape.shift = static_cast<int>(bytes_.Between(0, 3));
    scope.pool = std::make_unique<CodedPool>(coding, shape);
    const uint32_t seed = bytes_.Take<uint8_t>() * 100000u;
    const float range = bytes_.OneIn(2) ? 1.0f : 0.1f;
    const int head = shape.heads - 1;
    for (int slot = 0; slot < scope.rows.slots; ++slot) {
      std::vector<double> x;
      for (int64_t i = 0; i < dim_; ++i) {
        x.push_back(range * Noise(seed + static_cast<uint32_t>(slot * 1000 + i)));
      }
      scope.pool->Put(slot / shape.page_size, slot % shape.page_size, head, x);
      scope.values.push_back(x);
    }
    scope.pool->MakeReadOnly();
    const int64_t slots = scope.rows.slots;
    scope.rows = riffle::test::RowsOf(riffle::test::OneHead(scope.pool->view(), head));
    scope.rows.slots = slots;
    scope.shared = coding.format != riffle::KvFormat::kPlain          ? 32
                   : coding.scaling == riffle::test::Scaling::kGroups ? coding.group
                                                                      : 1;
  }

  // The contract, in the caller's terms.
  bool Valid() const {
    if (value_dim_ < 0 || value_dim_ > dim_ || value_dim_ % 16 != 0) return false;
    for (const float sink : sinks_) {
      if (std::isnan(sink)) return false;
    }
    for (const Scope& scope : scopes_) {
      if (value_dim_ % scope.shared != 0) return false;
      for (int64_t t = 0; t < tokens_ && scope.cols > 0; ++t) {
        const int32_t length = scope.lengths[static_cast<size_t>(t)];
        if (scope.has_lengths && (length < 0 || length > scope.cols)) return false;
        for (int64_t i = 0; i < (scope.has_lengths ? length : scope.cols) && !ignore_; ++i) {
          const int32_t slot = scope.slots[static_cast<size_t>(t * scope.cols + i)];
          if (slot < -1 || slot >= scope.rows.slots) return false;
        }
      }
    }
    return true;
  }

  void Compare() const {
    for (int64_t t = 0; t < tokens_; ++t) {
      std::vector<std::vector<double>> rows;
      for (const Scope& scope : scopes_) {
        const int64_t length =
            scope.has_lengths ? scope.lengths[static_cast<size_t>(t)] : scope.cols;
        for (int64_t i = 0; i < std::min(length, scope.cols); ++i) {
          const int32_t slot = scope.slots[static_cast<size_t>(t * scope.cols + i)];
          if (slot >= 0 && slot < scope.rows.slots) {
            rows.push_back(scope.values[static_cast<size_t>(slot)]);
          }
        }
      }
      for (int64_t h = 0; h < heads_; ++h) CompareHead(t, h, rows);
    }
  }

  void CompareHead(int64_t t, int64_t h, const std::vector<std::vector<double>>& rows) const {
    const auto row = static_cast<size_t>(t * heads_ + h);
    const auto q = q_.begin() + static_cast<std::ptrdiff_t>(row) * dim_;
    const double sink = sinks_.empty() ? -std::numeric_limits<double>::infinity()
                                       : double{sinks_[static_cast<size_t>(h)]};
    const riffle::test::ReferenceHead want = riffle::test::ReferenceAttend(
        std::vector<double>(q, q + dim_), rows, out_dim(), 0.125, sink);
    if (std::isinf(want.lse)) {
      Expect(double{lse_[row]} == want.lse);
    } else {
      Expect(std::abs(lse_[row] - want.lse) < 1e-4 * std::max(1.0, std::abs(want.lse)));
    }
    for (int64_t i = 0; i < out_dim(); ++i) {
      const double got = out_[row * static_cast<size_t>(out_dim()) + static_cast<size_t>(i)];
      Expect(std::abs(got - want.out[static_cast<size_t>(i)]) < 1e-3);
    }
  }

  Bytes bytes_;
  int64_t tokens_ = 0;
  int heads_ = 1;
  int64_t dim_ = 32;
  int64_t value_dim_ = 0;
  bool ignore_ = false;
  std::vector<Scope> scopes_;
  std::vector<float> sinks_, q_, out_, lse_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Call(Bytes(data, size)).Run();
  return 0;
}
