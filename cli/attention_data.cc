#include "cli/attention_data.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

#include "testing/kv_codes.h"

namespace riffle::cli {
namespace {

constexpr float kRowScale = 0x1p-6f;  // of int8

// How to make elements from random bits: which bits are kept and what is added, so that the
// exponent of the number is -1 or 0.
struct RandomBits {
  uint64_t keep;
  uint64_t add;
};
RandomBits BitsOf(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return {0x80ffffff80ffffffu, 0x3f0000003f000000u};
    case DType::kF16:
      return {0x87ff87ff87ff87ffu, 0x3800380038003800u};
    case DType::kBF16:
      return {0x81ff81ff81ff81ffu, 0x3e003e003e003e00u};
    case DType::kE4M3:
      return {0x8f8f8f8f8f8f8f8fu, 0x3030303030303030u};
    case DType::kE5M2:
      return {0x8787878787878787u, 0x3838383838383838u};
    default:
      return {~uint64_t{0}, 0};
  }
}

void Fill(HugeBuffer& memory, DType dtype, test::Rng& random) {
  const RandomBits of = BitsOf(dtype);
  for (size_t i = 0; i + 8 <= memory.bytes(); i += 8) {
    const uint64_t bits = (random.Next() & of.keep) + of.add;
    std::memcpy(memory.data() + i, &bits, 8);
  }
}

// Fills blocks with random codes under one scale, a power of two.
void FillBlocks(HugeBuffer& memory, KvFormat format, test::Rng& random) {
  Fill(memory, DType::kU8, random);
  const auto block = static_cast<size_t>(BlockBytes(format));
  const uint16_t scale = format == KvFormat::kQ8_0 ? 0x2400 : 0x3400;  // 2^-6, 2^-2
  for (size_t i = 0; i + block <= memory.bytes(); i += block) {
    std::memcpy(memory.data() + i, &scale, 2);
  }
}

}  // namespace

void AttentionData::DealPages(test::Rng& random) {
  for (size_t b = 0; b < what.kv_lens.size(); ++b) {
    cu_q_lens.push_back(cu_q_lens.back() + what.q_lens[b]);
    const int32_t pages = (what.kv_lens[b] + what.page_size - 1) / what.page_size;
    total_pages += pages;
    max_pages = std::max(max_pages, pages);
  }
  tokens = cu_q_lens.back();
  std::vector<int32_t> order(static_cast<size_t>(total_pages));
  std::iota(order.begin(), order.end(), 0);
  for (size_t i = order.size(); i > 1; --i) {
    std::swap(order[i - 1], order[static_cast<size_t>(random.Below(static_cast<int64_t>(i)))]);
  }
  table.assign(what.kv_lens.size() * static_cast<size_t>(max_pages), -1);
  size_t next = 0;
  for (size_t b = 0; b < what.kv_lens.size(); ++b) {
    const int32_t pages = (what.kv_lens[b] + what.page_size - 1) / what.page_size;
    std::copy_n(order.begin() + static_cast<std::ptrdiff_t>(next), pages,
                table.begin() + static_cast<std::ptrdiff_t>(b) * max_pages);
    next += static_cast<size_t>(pages);
  }
}

void AttentionData::MakeMask() {
  const int64_t keys_of_row = *std::max_element(what.kv_lens.begin(), what.kv_lens.end());
  mask_memory = HugeBuffer(static_cast<size_t>(tokens * keys_of_row));
  mask = {.data = mask_memory.data(),
          .dtype = DType::kU8,
          .tokens = tokens,
          .heads = 1,
          .keys = keys_of_row,
          .token_stride = keys_of_row};
  uint8_t* row = mask_memory.data();
  for (size_t b = 0; b < what.kv_lens.size(); ++b) {
    for (int query = 0; query < what.q_lens[b]; ++query, row += keys_of_row) {
      const int position = what.kv_lens[b] - what.q_lens[b] + query;
      const int first = what.first_key(position);
      std::memset(row, 0, static_cast<size_t>(keys_of_row));
      std::memset(row + first, 1, static_cast<size_t>(position + 1 - first));
    }
  }
}

AttentionData::AttentionData(const AttentionCase& the_case) : what(the_case) {
  test::Rng random(7);
  DealPages(random);
  keys.dtype = what.dtype;
  keys.format = what.format;
  keys.num_pages = total_pages;
  keys.page_size = what.page_size;
  keys.kv_heads = what.kv_heads;
  keys.head_dim = what.head_dim;
  // HND. The strides of block formats are in bytes.
  keys.token_stride = RowBytes(keys) / static_cast<int64_t>(SizeOf(what.dtype));
  keys.head_stride = what.page_size * keys.token_stride;
  keys.page_stride = what.kv_heads * keys.head_stride;
  const auto bytes = static_cast<size_t>(total_pages * keys.page_stride) * SizeOf(what.dtype);
  keys_memory = HugeBuffer(bytes);
  values_memory = HugeBuffer(what.values_in_keys ? 64 : bytes);
  const int heads = what.kv_heads * what.group;
  const size_t element = SizeOf(what.q_dtype);
  q_memory = HugeBuffer(static_cast<size_t>(tokens * heads * what.head_dim) * element);
  out_memory = HugeBuffer(static_cast<size_t>(tokens * heads * what.values_dim()) * element);
  for (HugeBuffer* memory : {&keys_memory, &values_memory}) {
    if (what.format == KvFormat::kPlain) {
      Fill(*memory, what.dtype, random);
    } else {
      FillBlocks(*memory, what.format, random);
    }
  }
  Fill(q_memory, what.q_dtype, random);
  keys.data = keys_memory.data();
  if (what.row_scales) {
    const int64_t rows = int64_t{total_pages} * what.kv_heads * what.page_size;
    scales_memory = HugeBuffer(static_cast<size_t>(rows) * sizeof(float));
    std::fill_n(reinterpret_cast<float*>(scales_memory.data()), rows, kRowScale);
    keys.scales = {.data = scales_memory.data(),
                   .page_stride = int64_t{what.kv_heads} * what.page_size,
                   .token_stride = 1,
                   .head_stride = what.page_size};
  }
  values = keys;
  values.head_dim = what.values_dim();
  values.data = what.values_in_keys ? keys.data : values_memory.data();
  q = {q_memory.data(), what.q_dtype,          tokens,       heads,
       what.head_dim,   heads * what.head_dim, what.head_dim};
  if (what.mask_block > 0) {
    MakeMask();
  }
  batch = {cu_q_lens, what.kv_lens, table.data(), max_pages, max_pages};
  out = {out_memory.data(), int64_t{heads} * what.values_dim(), what.values_dim(), nullptr, 0};
}

double AttentionData::Element(const PagedKv& kv, size_t b, int position, int head, int i) const {
  const int32_t page =
      table[b * static_cast<size_t>(max_pages) + static_cast<size_t>(position / what.page_size)];
  const auto* row = static_cast<const uint8_t*>(kv.data) +
                    (page * kv.page_stride + position % what.page_size * kv.token_stride +
                     head * kv.head_stride) *
                        static_cast<int64_t>(SizeOf(kv.dtype));
  const double code = test::DecodeElement({.dtype = kv.dtype, .format = kv.format}, row, i);
  return kv.dtype == DType::kI8 && kv.format == KvFormat::kPlain ? kRowScale * code : code;
}

}  // namespace riffle::cli
