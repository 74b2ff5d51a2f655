#include "cli/write_cases.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <random>
#include <span>
#include <stdexcept>
#include <utility>

#include "cli/huge_buffer.h"
#include "testing/kv_codes.h"
#include "testing/reference.h"

namespace riffle::cli {
namespace {

constexpr int64_t kPageSize = 16;
constexpr int64_t kPoolPages = 2048;
constexpr int64_t kCopyBytes = 64 << 10;  // per task of the copy

// One call's arrays. Both pools are in one buffer, and both inputs in another.
class Write {
 public:
  explicit Write(const WriteCase& what)
      : what_(what),
        row_(what.format == KvFormat::kPlain
                 ? what.head_dim * static_cast<int64_t>(SizeOf(what.dtype))
                 : what.head_dim / 32 * BlockBytes(what.format)),
        input_(static_cast<size_t>(2 * InputBytes())),
        pool_(static_cast<size_t>(2 * PoolBytes())) {
    std::mt19937_64 generator(7);
    std::normal_distribution<float> normal;
    const auto elements = static_cast<size_t>(2 * what.tokens * what.kv_heads * what.head_dim);
    for (size_t i = 0; i < elements; ++i) {
      const auto bits = std::bit_cast<uint32_t>(normal(generator)) & 0xffff0000u;  // exact in bf16
      if (what.from == DType::kF32) {
        std::memcpy(input_.data() + 4 * i, &bits, 4);
      } else {
        const auto upper = static_cast<uint16_t>(bits >> 16);
        std::memcpy(input_.data() + 2 * i, &upper, 2);
      }
    }
    for (int64_t page = 0; page < kPoolPages; ++page) {
      pages_.push_back(page);
    }
    std::shuffle(pages_.begin(), pages_.end(), generator);
    slots_.resize(static_cast<size_t>(what.tokens));
    if (what.dtype == DType::kI8 || what.dtype == DType::kE4M3) {
      scales_.resize(static_cast<size_t>(2 * kPoolPages * kPageSize * what.kv_heads));
    }
  }

  // A call that writes the tokens from position `first` on of a sequence whose pages are shuffled.
  void Call(int64_t first, ThreadPool* threads) {
    for (int64_t t = 0; t < what_.tokens; ++t) {
      const int64_t position = (first + t) % (kPoolPages * kPageSize);
      slots_[static_cast<size_t>(t)] =
          pages_[static_cast<size_t>(position / kPageSize)] * kPageSize + position % kPageSize;
    }
    WriteKv(In(0), In(1), slots_, Out(0), Out(1), {threads});
  }

  // The copy that writing is compared with: all input bytes, to `to`.
  void Copy(uint8_t* to, ThreadPool* threads) const {
    const int64_t bytes = 2 * InputBytes();
    if (bytes <= kCopyBytes) {
      std::memcpy(to, input_.data(), static_cast<size_t>(bytes));
      return;
    }
    ParallelFor((bytes + kCopyBytes - 1) / kCopyBytes,
                [&](int64_t i) {
                  const int64_t size = std::min(kCopyBytes, bytes - i * kCopyBytes);
                  std::memcpy(to + i * kCopyBytes, input_.data() + i * kCopyBytes,
                              static_cast<size_t>(size));
                },
                {.pool = threads});
  }

  // Throws unless what the last call wrote decodes to the tokens.
  void Check() const {
    for (int side = 0; side < 2; ++side) {
      for (int64_t t = 0; t < what_.tokens; ++t) {
        for (int64_t h = 0; h < what_.kv_heads; ++h) {
          CheckRow(side, t, h);
        }
      }
    }
  }

  int64_t InputBytes() const {
    return what_.tokens * what_.kv_heads * what_.head_dim *
           static_cast<int64_t>(SizeOf(what_.from));
  }
  const HugeBuffer& pool() const { return pool_; }

 private:
  int64_t PoolBytes() const { return kPoolPages * kPageSize * what_.kv_heads * row_; }

  HeadsView In(int side) const {
    return {input_.data() + side * InputBytes(),
            what_.from,
            what_.tokens,
            what_.kv_heads,
            what_.head_dim,
            what_.kv_heads * what_.head_dim,
            what_.head_dim};
  }

  PagedKvOut Out(int side) {
    const bool is_block = what_.format != KvFormat::kPlain;
    const int64_t row = is_block ? row_ : what_.head_dim;
    PagedKvOut out{pool_.data() + side * PoolBytes(),
                   is_block ? DType::kU8 : what_.dtype,
                   kPoolPages,
                   kPageSize,
                   what_.kv_heads,
                   what_.head_dim,
                   row * kPageSize * what_.kv_heads,
                   row,
                   row * kPageSize,
                   {},
                   what_.format};
    if (!scales_.empty()) {
      out.computed_scales = scales_.data() + static_cast<size_t>(side) * scales_.size() / 2;
      out.scales.page_stride = kPageSize * what_.kv_heads;
      out.scales.token_stride = 1;
      out.scales.head_stride = kPageSize;
    }
    return out;
  }

  float Input(int side, int64_t token, int64_t head, int64_t i) const {
    const int64_t at = (token * what_.kv_heads + head) * what_.head_dim + i;
    const uint8_t* const data = input_.data() + side * InputBytes();
    uint32_t bits = 0;
    if (what_.from == DType::kF32) {
      std::memcpy(&bits, data + 4 * at, 4);
    } else {
      std::memcpy(reinterpret_cast<uint8_t*>(&bits) + 2, data + 2 * at, 2);
    }
    return std::bit_cast<float>(bits);
  }

  // Element i of a row, and how far it may be from the value that was given.
  std::pair<double, double> Element(const uint8_t* row, double scale, int64_t i) const {
    const test::KvCoding coding{.dtype = what_.dtype, .format = what_.format};
    const double value = test::DecodeElement(coding, row, static_cast<int>(i)) * scale;
    if (what_.format != KvFormat::kPlain) {
      const uint8_t* const block = row + i / 32 * BlockBytes(what_.format);
      return {value, 1.01 * std::fabs(test::Decode(DType::kF16, block))};  // the block's scale
    }
    switch (what_.dtype) {
      case DType::kI8:
        return {value, 0.501 * scale};
      case DType::kE4M3:
        return {value, 0.0626 * std::fabs(value) + scale * 0x1p-9};
      default:  // bf16, which the input is too
        return {value, 0};
    }
  }

  void CheckRow(int side, int64_t token, int64_t head) const {
    const int64_t slot = slots_[static_cast<size_t>(token)];
    const int64_t row = (slot / kPageSize * what_.kv_heads + head) * kPageSize + slot % kPageSize;
    const uint8_t* const data = pool_.data() + side * PoolBytes() + row * row_;
    const double scale =
        scales_.empty()
            ? 1.0
            : scales_[static_cast<size_t>(side) * scales_.size() / 2 + static_cast<size_t>(row)];
    for (int64_t i = 0; i < what_.head_dim; ++i) {
      const auto [value, bound] = Element(data, scale, i);
      const double expected = Input(side, token, head, i);
      if (!(std::fabs(value - expected) <= bound)) {
        throw std::runtime_error(fmt::format("{}: token {}, head {}, element {} is {}, not {}",
                                             what_.name, token, head, i, value, expected));
      }
    }
  }

  const WriteCase what_;
  const int64_t row_;
  HugeBuffer input_;
  HugeBuffer pool_;
  std::vector<int64_t> pages_;
  std::vector<int64_t> slots_;
  std::vector<float> scales_;
};

}  // namespace

std::vector<WriteCase> WriteCases() {
  return {{.name = "bf16-1", .tokens = 1},
          {.name = "bf16-32", .tokens = 32},
          {.name = "bf16-2048"},
          {.name = "f32-bf16-2048", .from = DType::kF32},
          {.name = "e4m3-1", .tokens = 1, .dtype = DType::kE4M3},
          {.name = "e4m3-2048", .dtype = DType::kE4M3},
          {.name = "int8-2048", .dtype = DType::kI8},
          {.name = "q8_0-2048", .format = KvFormat::kQ8_0},
          {.name = "q4_0-2048", .format = KvFormat::kQ4_0}};
}

RooflineLine RunWriteCase(const WriteCase& what, double min_seconds, ThreadPool* pool) {
  Write write(what);
  write.Call(5, pool);
  write.Check();
  // Small calls are timed together, each at its own place of the pool.
  const int calls = what.tokens < 1024 ? 256 : 1;
  // Copies cycle through a buffer as large as the pools, as calls cycle through the pools, so that
  // neither finds its destination in cache.
  const HugeBuffer copy(write.pool().bytes());
  const int64_t copies = static_cast<int64_t>(copy.bytes()) / (2 * write.InputBytes());
  int64_t first = 0;
  int64_t copied = 0;
  RooflineCase roofline;
  roofline.name = what.name;
  roofline.pages = PagesOf(write.pool().data(), write.pool().bytes());
  roofline.bytes = static_cast<double>(2 * write.InputBytes());
  roofline.call = [&] {
    for (int i = 0; i < calls; ++i, first += what.tokens) {
      write.Call(first, pool);
    }
  };
  roofline.read = [&] {
    for (int i = 0; i < calls; ++i, ++copied) {
      write.Copy(copy.data() + copied % copies * 2 * write.InputBytes(), pool);
    }
  };
  RooflineLine line = MeasureRoofline(roofline, min_seconds, pool);
  for (Timing* timing : {&line.time, &*line.read}) {
    timing->median /= calls;
    timing->min /= calls;
  }
  return line;
}

}  // namespace riffle::cli
