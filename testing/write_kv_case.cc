#include "testing/write_kv_case.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "testing/distributions.h"
#include "testing/reference.h"
#include "testing/text.h"
#include "testing/write_kv_reference.h"

namespace riffle::test {
namespace {

constexpr int64_t kMargin = 64;  // bytes before and after each array

int64_t Size(DType dtype) { return static_cast<int64_t>(SizeOf(dtype)); }

uint32_t Load(DType dtype, const uint8_t* at) {
  uint32_t code = 0;
  std::memcpy(&code, at, SizeOf(dtype));
  return code;
}

void StoreCode(DType dtype, uint32_t code, uint8_t* at) { std::memcpy(at, &code, SizeOf(dtype)); }

std::vector<uint8_t> Patterned(int64_t bytes, Rng& rng) {
  std::vector<uint8_t> memory(static_cast<size_t>(bytes + 2 * kMargin + 8));
  for (uint8_t& byte : memory) byte = static_cast<uint8_t>(rng.Next());
  return memory;
}

// Elements of many magnitudes; now and then a zero, an infinity, a NaN, a subnormal.
float RandomElement(Rng& rng, bool finite) {
  const auto normal = static_cast<float>((rng.Unit() - 0.5) * 8);
  if (!rng.OneIn(6)) return normal;
  switch (rng.Below(finite ? 4 : 9)) {
    case 0:
      return 0.0f;
    case 1:
      return normal * 0x1p-12f;
    case 2:
      return normal * 1000;
    case 3:
      return static_cast<float>(rng.Between(-6, 6)) / 2;  // halves of int8, ties
    case 4:
      return INFINITY;
    case 5:
      return -INFINITY;
    case 6:
      return NAN;
    case 7:
      return normal * 0x1p-130f;
    default:
      return normal * 1e30f;
  }
}

// The limit that WriteKv documents.
float MaxOf(DType dtype) {
  return dtype == DType::kE4M3 ? 448.0f : dtype == DType::kE5M2 ? 57344.0f : 127.0f;
}

}  // namespace

std::string Describe(const SideSpec& s) {
  return Concat(Name(s.dtype), " ", Name(s.format), " d ", s.head_dim, " scales ",
                static_cast<int>(s.scales), " of ", Name(s.scale_dtype), " group ", s.group, " / ",
                s.divisor, s.compute ? " computed" : "");
}

WriteSide::WriteSide(const WriteSpec& spec, const SideSpec& side, Rng& rng)
    : spec_(spec), side_(side) {
  const bool is_block = side.format != KvFormat::kPlain;
  view_.dtype = is_block ? DType::kU8 : side.dtype;
  view_.format = side.format;
  view_.num_pages = spec.pages;
  view_.page_size = spec.page_size;
  view_.kv_heads = spec.kv_heads;
  view_.head_dim = side.head_dim;
  const int64_t row =
      (is_block ? side.head_dim / 32 * BlockBytes(side.format) : side.head_dim) + spec.gap;
  // Places the axes from the innermost outwards, with a gap after each.
  const auto place = [&](int64_t& inner, int64_t inner_size, int64_t& middle, int64_t middle_size,
                         int64_t& outer, int64_t from, int64_t gap) {
    inner = from;
    middle = inner * inner_size + gap;
    outer = middle * middle_size + gap;
  };
  const auto lay_out = [&](int64_t& page, int64_t& token, int64_t& head, int64_t from,
                           int64_t gap) {
    if (spec.layout == Layout::kHND) {
      place(token, spec.page_size, head, spec.kv_heads, page, from, gap);
      return page * spec.pages;
    }
    if (spec.layout == Layout::kNHD) {
      place(head, spec.kv_heads, token, spec.page_size, page, from, gap);
      return page * spec.pages;
    }
    place(token, spec.page_size, page, spec.pages, head, from, gap);
    return head * spec.kv_heads;
  };
  const int64_t elements =
      lay_out(view_.page_stride, view_.token_stride, view_.head_stride, row, spec.gap);
  pool_ = Patterned(elements * Size(view_.dtype), rng);

  KvScales& scales = view_.scales;
  int64_t scale_count = 0;
  if (side.scales != ScaleKind::kNone) {
    scales.dtype = side.scale_dtype;
    scales.divisor = side.divisor;
    scale_count = 1;
  }
  if (side.scales == ScaleKind::kPerHead) {
    scales.head_stride = 2;
    scale_count = 2 * spec.kv_heads;
  }
  if (side.scales == ScaleKind::kPerRow) {
    scale_count = lay_out(scales.page_stride, scales.token_stride, scales.head_stride, 1, spec.gap);
  }
  if (side.scales == ScaleKind::kGrouped) {
    scales.group = side.group;
    scales.group_stride = spec.gap > 0 ? 2 : 1;
    const int64_t groups = (side.head_dim + side.group - 1) / side.group;
    scale_count = lay_out(scales.page_stride, scales.token_stride, scales.head_stride,
                          groups * scales.group_stride, spec.gap);
  }
  scales_ = Patterned(scale_count * Size(scales.dtype), rng);
  for (int64_t i = 0; i < scale_count && !side.compute; ++i) {
    const float scale = rng.OneIn(12)   ? 0.0f
                        : rng.OneIn(12) ? -0.25f
                                        : static_cast<float>(rng.Unit() * 0.25 + 0x1p-7);
    StoreCode(scales.dtype, ScaleCode(scales.dtype, std::fabs(scale)),
              scales_.data() + kMargin + spec.shift + i * Size(scales.dtype));
  }

  in_row_ = side.head_dim + 3;
  in_ = Patterned(spec.tokens * spec.kv_heads * in_row_ * Size(spec.in_dtype), rng);
  for (int64_t i = 0; i < spec.tokens * spec.kv_heads * in_row_; ++i) {
    Store(spec.in_dtype, Encode(spec.in_dtype, RandomElement(rng, is_block)),
          in_.data() + kMargin + spec.shift + i * Size(spec.in_dtype));
  }
  first_pool_ = expected_pool_ = pool_;
  first_scales_ = expected_scales_ = scales_;
}

void WriteSide::Reset() {
  pool_ = expected_pool_ = first_pool_;
  scales_ = expected_scales_ = first_scales_;
}

HeadsView WriteSide::in() const {
  return {in_.data() + kMargin + spec_.shift,
          spec_.in_dtype,
          spec_.tokens,
          spec_.kv_heads,
          side_.head_dim,
          spec_.kv_heads * in_row_,
          in_row_};
}

PagedKvOut WriteSide::pages() {
  PagedKvOut view = view_;
  view.data = pool_.data() + kMargin + spec_.shift;
  uint8_t* const scales = scales_.data() + kMargin + spec_.shift;
  if (side_.scales != ScaleKind::kNone) {
    (side_.compute ? view.scales.data = nullptr : view.scales.data = scales);
    view.computed_scales = side_.compute ? scales : nullptr;
  }
  return view;
}

float WriteSide::Input(int64_t token, int64_t head, int64_t i) const {
  return static_cast<float>(Decode(
      spec_.in_dtype, in_.data() + kMargin + spec_.shift +
                          ((token * spec_.kv_heads + head) * in_row_ + i) * Size(spec_.in_dtype)));
}

// The scale at an offset from the first, in elements; if scales are computed, computed from `x`.
float WriteSide::ExpectScale(int64_t at, const std::vector<float>& x) {
  const DType dtype = view_.scales.dtype;
  uint8_t* const where = expected_scales_.data() + kMargin + spec_.shift + at * Size(dtype);
  if (side_.compute) {
    float most = 0;
    for (const float value : x) {
      most = std::isnan(value) || std::isnan(most) ? NAN : std::max(most, std::fabs(value));
    }
    const float quotient = most / MaxOf(side_.dtype);
    StoreCode(dtype, ScaleCode(dtype, quotient * side_.divisor), where);
  }
  return static_cast<float>(DecodeCode(dtype, Load(dtype, where)));
}

void WriteSide::ExpectRow(int64_t row_at, int64_t scale_at, const std::vector<float>& x) {
  uint8_t* const row = expected_pool_.data() + kMargin + spec_.shift + row_at * Size(view_.dtype);
  if (side_.format != KvFormat::kPlain) {
    std::vector<uint8_t> bytes;
    for (size_t i = 0; i < x.size(); i += 32) AppendBlock(side_.format, x.data() + i, &bytes);
    std::copy(bytes.begin(), bytes.end(), row);
    return;
  }
  const size_t group = view_.scales.group > 0 ? static_cast<size_t>(view_.scales.group) : x.size();
  for (size_t begin = 0; begin < x.size(); begin += group) {
    const size_t end = std::min(begin + group, x.size());
    float scale = 1;
    if (side_.scales != ScaleKind::kNone) {
      const std::vector<float> part(x.begin() + static_cast<ptrdiff_t>(begin),
                                    x.begin() + static_cast<ptrdiff_t>(end));
      scale = ExpectScale(scale_at, part) / side_.divisor;
      scale_at += view_.scales.group_stride;
    }
    for (size_t i = begin; i < end; ++i) {
      float quotient = side_.scales == ScaleKind::kNone ? x[i] : x[i] / scale;
      // A computed scale may be less than wanted where its dtype has few bits for it.
      if (side_.compute && side_.dtype == DType::kE5M2 && std::fabs(quotient) > 57344.0f) {
        quotient = std::copysign(57344.0f, quotient);
      }
      const uint32_t code = scale == 0.0f ? 0 : NearestCode(side_.dtype, quotient);
      StoreCode(side_.dtype, code, row + i * SizeOf(side_.dtype));
    }
  }
}

void WriteSide::Expect(int64_t token, int64_t page, int64_t offset) {
  const KvScales& scales = view_.scales;
  for (int64_t head = 0; head < spec_.kv_heads; ++head) {
    std::vector<float> x;
    for (int64_t i = 0; i < side_.head_dim; ++i) x.push_back(Input(token, head, i));
    ExpectRow(page * view_.page_stride + offset * view_.token_stride + head * view_.head_stride,
              page * scales.page_stride + offset * scales.token_stride + head * scales.head_stride,
              x);
  }
}

std::string WriteSide::Difference() const {
  const auto differs = [&](const char* what, DType dtype, const std::vector<uint8_t>& got,
                           const std::vector<uint8_t>& expected) -> std::string {
    // Compares elements as elements, so that any NaN will do; everything else byte by byte.
    const size_t size = SizeOf(dtype), first = static_cast<size_t>(kMargin + spec_.shift);
    for (size_t i = 0; i < got.size(); ++i) {
      if (got[i] == expected[i]) continue;
      const size_t at = first + (i - first) / size * size;
      if (i >= first && dtype != DType::kU8 && at + size <= got.size() &&
          SameCode(dtype, Load(dtype, got.data() + at), Load(dtype, expected.data() + at))) {
        continue;
      }
      return Concat(what, ": byte ", i - first, " is ", int{got[i]}, ", not ", int{expected[i]},
                    "; ");
    }
    return "";
  };
  return differs("pool", view_.dtype, pool_, expected_pool_) +
         differs("scales", view_.scales.dtype, scales_, expected_scales_);
}

WriteCase::WriteCase(const WriteSpec& spec)
    : spec_(spec),
      rng_(spec.seed),
      slots_(spec.slots),
      keys_(spec, spec.keys, rng_),
      values_(spec, spec.values, rng_) {
  const int64_t slots = spec.pages * spec.page_size;
  while (static_cast<int64_t>(slots_.size()) < spec.tokens) {
    slots_.push_back(rng_.OneIn(8)                      ? -1
                     : rng_.OneIn(4) && !slots_.empty() ? rng_.Pick(slots_)
                                                        : rng_.Below(slots));
  }
  slots32_.assign(slots_.begin(), slots_.end());
}

void WriteCase::Call(const CallOptions& options) {
  const IndexSpan slots = spec_.int64_slots ? IndexSpan(slots_) : IndexSpan(slots32_);
  WriteKv(keys_.in(), values_.in(), slots, keys_.pages(), values_.pages(), options);
}

std::string WriteCase::Run(ThreadPool* pool) {
  keys_.Reset();
  values_.Reset();
  for (int64_t t = 0; t < spec_.tokens; ++t) {
    const int64_t slot = slots_[static_cast<size_t>(t)];
    if (slot < 0) continue;
    keys_.Expect(t, slot / spec_.page_size, slot % spec_.page_size);
    values_.Expect(t, slot / spec_.page_size, slot % spec_.page_size);
  }
  Call({pool});
  return Difference();
}

}  // namespace riffle::test
