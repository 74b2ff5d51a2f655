#include "testing/coded_pool.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "testing/distributions.h"

namespace riffle::test {
namespace {

constexpr int kGap = 8;  // elements between the tokens of NHD

int64_t RowUnits(const KvCoding& coding, int dim) {
  return coding.format == KvFormat::kPlain ? dim : dim / 32 * BlockBytes(coding.format);
}

}  // namespace

CodedPool::CodedPool(const KvCoding& coding, const CodedPoolShape& shape)
    : coding_(coding), shape_(shape) {
  const int64_t gap = shape.layout == Layout::kNHD ? kGap : 0;
  const auto rows = static_cast<size_t>(int64_t{shape.pages} * shape.page_size);
  const size_t bytes = rows * static_cast<size_t>(shape.heads * RowUnits(coding, shape.dim) + gap) *
                       SizeOf(coding.dtype);
  const auto shift = static_cast<size_t>(shape.shift);
  rows_ = std::make_unique<GuardedBuffer>(bytes + shift, shift == 0);
  // Fills the pool with NaN: 0xff... is a NaN of every float type; integers become NaN by a scale.
  std::fill_n(rows_->data(), bytes, uint8_t{0xff});
  if (coding.scaling != Scaling::kNone) {
    const auto groups =
        static_cast<size_t>(coding.scaling == Scaling::kGroups ? shape.dim / coding.group : 1);
    const size_t scales = rows * static_cast<size_t>(shape.heads) * groups;
    scales_ =
        std::make_unique<GuardedBuffer>(scales * SizeOf(coding.scale_dtype) + shift, shift == 0);
    std::fill_n(scales_->data(), scales * SizeOf(coding.scale_dtype), uint8_t{0xff});
  }
}

PagedKv CodedPool::view() const {
  PagedKv kv{rows_->data(),
             coding_.dtype,
             shape_.pages,
             shape_.page_size,
             shape_.heads,
             shape_.dim,
             0,
             0,
             0};
  kv.format = coding_.format;
  const int64_t d = RowUnits(coding_, shape_.dim);
  if (shape_.layout == Layout::kHND) {
    kv.token_stride = d;
    kv.head_stride = shape_.page_size * d;
    kv.page_stride = shape_.heads * kv.head_stride;
  } else if (shape_.layout == Layout::kNHD) {
    kv.head_stride = d;
    kv.token_stride = shape_.heads * d + kGap;
    kv.page_stride = shape_.page_size * kv.token_stride;
  } else {
    kv.token_stride = d;
    kv.page_stride = shape_.page_size * d;
    kv.head_stride = shape_.pages * kv.page_stride;
  }
  if (scales_ == nullptr) {
    return kv;
  }
  kv.scales.data = scales_->data();
  kv.scales.dtype = coding_.scale_dtype;
  kv.scales.divisor = coding_.divisor;
  if (coding_.scaling == Scaling::kHead) {
    kv.scales.head_stride = 1;
  } else if (coding_.scaling >= Scaling::kRow) {
    // Scales have a layout other than the rows': [heads, pages, page_size] or [pages, page_size,
    // heads], each with groups first or last.
    const bool heads_first = shape_.layout == Layout::kJAX;
    const int64_t rows = int64_t{shape_.pages} * shape_.page_size;
    const bool grouped = coding_.scaling == Scaling::kGroups;
    const int64_t groups = grouped ? shape_.dim / coding_.group : 1;
    const bool groups_last = heads_first || !grouped;
    const int64_t unit = groups_last ? groups : 1;
    kv.scales.token_stride = unit * (heads_first ? 1 : shape_.heads);
    kv.scales.head_stride = unit * (heads_first ? rows : 1);
    kv.scales.page_stride = shape_.page_size * kv.scales.token_stride;
    if (grouped) {
      kv.scales.group = coding_.group;
      kv.scales.group_stride = groups_last ? 1 : rows * shape_.heads;
    }
  }
  return kv;
}

uint8_t* CodedPool::Row(int page, int token, int head) {
  const PagedKv kv = view();
  return rows_->data() + (page * kv.page_stride + token * kv.token_stride + head * kv.head_stride) *
                             static_cast<int64_t>(SizeOf(kv.dtype));
}

uint8_t* CodedPool::Scale(int page, int token, int head, int group) {
  const KvScales s = view().scales;
  return scales_->data() + (page * s.page_stride + token * s.token_stride + head * s.head_stride +
                            group * s.group_stride) *
                               static_cast<int64_t>(SizeOf(s.dtype));
}

// The scale of elements [begin, end) of a row, with its divisor. Integer codes can be NaN or
// infinite only through their scale.
double CodedPool::MakeScale(int page, int token, int head, int begin, int end,
                            const std::vector<double>& x) {
  double largest = 0;
  for (int i = begin; i < end; ++i) {
    const double magnitude = std::abs(x[static_cast<size_t>(i)]);
    if (coding_.dtype == DType::kI8 || std::isfinite(magnitude)) {
      largest = std::isnan(magnitude) || magnitude > largest ? magnitude : largest;
    }
  }
  // A scale that many rows share must not depend on one of them.
  double scale = largest / LargestCode(coding_.dtype);
  if (coding_.scaling == Scaling::kTensor) {
    scale = 3.7 / LargestCode(coding_.dtype);
  } else if (coding_.scaling == Scaling::kHead) {
    scale = (3 + head) / LargestCode(coding_.dtype);
  }
  const int group = coding_.scaling == Scaling::kGroups ? begin / coding_.group : 0;
  return EncodeScale(coding_.scale_dtype, scale * coding_.divisor,
                     Scale(page, token, head, group)) /
         double{coding_.divisor};
}

void CodedPool::Put(int page, int token, int head, std::vector<double>& x) {
  uint8_t* row = Row(page, token, head);
  if (coding_.format != KvFormat::kPlain) {
    for (int i = 0; i < shape_.dim; i += 32) {
      EncodeBlock(coding_.format, x.data() + i, row + i / 32 * BlockBytes(coding_.format));
    }
    x = DecodeRow(coding_, row, shape_.dim, [](int) { return 1.0; });
    return;
  }
  if (coding_.scaling == Scaling::kNone) {
    for (int i = 0; i < shape_.dim; ++i) {
      EncodeElement(coding_.dtype, x[static_cast<size_t>(i)], row, i);
    }
    x = DecodeRow(coding_, row, shape_.dim, [](int) { return 1.0; });
    return;
  }
  const int group = coding_.scaling == Scaling::kGroups ? coding_.group : shape_.dim;
  for (int begin = 0; begin < shape_.dim; begin += group) {
    const double scale = MakeScale(page, token, head, begin, begin + group, x);
    for (int i = begin; i < begin + group; ++i) {
      double& value = x[static_cast<size_t>(i)];
      const double steps = scale == 0             ? 0
                           : std::isfinite(scale) ? value / scale
                           : value < 0            ? -1
                                                  : 1;
      EncodeElement(coding_.dtype, steps, row, i);
      value = DecodeElement(coding_, row, i) * scale;
    }
  }
}

void CodedPool::MakeReadOnly() {
  rows_->MakeReadOnly();
  if (scales_ != nullptr) {
    scales_->MakeReadOnly();
  }
}

PagedKv OneHead(PagedKv kv, int64_t head) {
  const auto offset = [&](const void* data, int64_t stride, DType dtype) {
    return static_cast<const uint8_t*>(data) + head * stride * static_cast<int64_t>(SizeOf(dtype));
  };
  kv.data = offset(kv.data, kv.head_stride, kv.dtype);
  if (kv.scales.data != nullptr) {
    kv.scales.data = offset(kv.scales.data, kv.scales.head_stride, kv.scales.dtype);
  }
  kv.kv_heads = 1;
  return kv;
}

SparseRows RowsOf(const PagedKv& kv) {
  SparseRows rows{kv.data, kv.dtype, kv.num_pages * kv.page_size, kv.head_dim, kv.token_stride};
  rows.page_size = kv.page_size;
  rows.page_stride = kv.page_stride;
  rows.scales = kv.scales;
  rows.blocks = kv.format;
  return rows;
}

}  // namespace riffle::test
