#include "cli/sparse_data.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <utility>

#include "testing/kv_codes.h"

namespace riffle::cli {
namespace {

constexpr uint64_t kBF16Bits = 0x80ff80ff80ff80ffu;  // sign, one bit of the exponent, fraction
constexpr uint64_t kBF16Base = 0x3f003f003f003f00u;  // added, so that 0.5 <= |x| < 2
constexpr uint64_t kE4M3Bits = 0x8787878787878787u;  // sign and fraction
constexpr uint64_t kE4M3Base = 0x3838383838383838u;  // added, so that 1 <= |x| < 2

void Fill(uint8_t* data, size_t bytes, uint64_t bits, uint64_t base, test::Rng& random) {
  for (size_t i = 0; i < bytes; i += 8) {
    const uint64_t x = (random.Next() & bits) | base;
    std::memcpy(data + i, &x, std::min<size_t>(8, bytes - i));
  }
}

double E4M3(uint8_t code) {  // for normal codes only
  const double magnitude = std::ldexp(8 + (code & 7), (code >> 3 & 15) - 10);
  return (code & 0x80) != 0 ? -magnitude : magnitude;
}

double BF16At(const uint8_t* data, int64_t i) {
  return test::DecodeElement({.dtype = DType::kBF16}, data + 2 * i, 0);
}

int64_t RowBytes(SparseRowFormat format) {
  return format == SparseRowFormat::kPlain    ? 576 * 2
         : format == SparseRowFormat::kMla656 ? 656
                                              : 584;
}

}  // namespace

SparseData::SparseData(const SparseCase& the_case) : what(the_case) {
  test::Rng random(5);
  pages = (what.context + kPageSize - 1) / kPageSize;
  table.resize(static_cast<size_t>(pages));
  std::iota(table.begin(), table.end(), 0);
  for (size_t i = table.size(); i > 1; --i) {
    std::swap(table[i - 1], table[random.Next() % i]);
  }
  kv_lens = {static_cast<int32_t>(what.context)};
  cu_q_lens = {0, static_cast<int32_t>(what.queries)};
  if (what.needs_keys()) {
    FillKeys(random);
  }
  if (what.needs_rows()) {
    FillRows(random);
  }
}

void SparseData::FillKeys(test::Rng& random) {
  const auto keys = static_cast<size_t>(pages * kPageSize);
  const size_t row = what.int8_keys ? kIndexDim : kIndexDim + 4;
  keys_memory = HugeBuffer(keys * row);
  if (what.int8_keys) {
    Fill(keys_memory.data(), keys * row, ~uint64_t{0}, 0, random);
    scales.assign(keys, 0);
    for (float& scale : scales) {
      scale = static_cast<float>(1 + random.Next() % 64) / 4096;
    }
  } else {
    const float scale = 0.25f;
    for (int64_t page = 0; page < pages; ++page) {
      uint8_t* at = keys_memory.data() + page * kPageSize * static_cast<int64_t>(row);
      Fill(at, kPageSize * kIndexDim, kE4M3Bits, kE4M3Base, random);
      for (int64_t i = 0; i < kPageSize; ++i) {
        std::memcpy(at + kPageSize * kIndexDim + 4 * i, &scale, sizeof(scale));
      }
    }
  }
  index_q_memory = HugeBuffer(static_cast<size_t>(what.queries * kIndexHeads * kIndexDim * 2));
  Fill(index_q_memory.data(), index_q_memory.bytes(), kBF16Bits, kBF16Base, random);
  for (int64_t i = 0; i < what.queries * kIndexHeads; ++i) {
    weights.push_back(static_cast<float>(random.Next() % 1024) / 1024);
  }
}

void SparseData::FillRows(test::Rng& random) {
  const int64_t bytes = RowBytes(what.rows);
  rows_memory = HugeBuffer(static_cast<size_t>(pages * kPageSize * bytes));
  if (what.rows == SparseRowFormat::kPlain) {
    Fill(rows_memory.data(), rows_memory.bytes(), kBF16Bits, kBF16Base, random);
  }
  for (int64_t page = 0; page < pages && what.rows != SparseRowFormat::kPlain; ++page) {
    uint8_t* at = rows_memory.data() + page * kPageSize * bytes;
    for (int64_t i = 0; i < kPageSize; ++i) {
      const bool v4 = what.rows == SparseRowFormat::kMla584;
      uint8_t* row = at + i * (v4 ? 576 : 656);
      Fill(row, v4 ? 448 : 512, kE4M3Bits, kE4M3Base, random);
      Fill(row + (v4 ? 448 : 528), 128, kBF16Bits, kBF16Base, random);
      const float scale = 0.5f;
      for (int s = 0; s < 4 && !v4; ++s) {
        std::memcpy(row + 512 + 4 * s, &scale, sizeof(scale));
      }
      if (v4) {
        std::fill_n(at + kPageSize * 576 + i * 8, 7, uint8_t{126});  // 1/2
      }
    }
  }
  q_memory = HugeBuffer(static_cast<size_t>(what.queries * what.heads * what.row_dim() * 2));
  Fill(q_memory.data(), q_memory.bytes(), kBF16Bits, kBF16Base, random);
  const auto slot_count = static_cast<uint64_t>(pages * kPageSize);
  for (int64_t t = 0; t < what.queries; ++t) {
    std::vector<bool> taken(slot_count);
    for (int64_t i = 0; i < std::min<int64_t>(what.k, what.context); ++i) {
      uint64_t slot = random.Next() % slot_count;
      while (taken[slot]) slot = random.Next() % slot_count;
      taken[slot] = true;
      slots.push_back(static_cast<int32_t>(slot));
    }
    for (int64_t i = 0; i < what.window; ++i) {
      window_slots.push_back(static_cast<int32_t>(Slot(what.context - what.window + i)));
    }
  }
}

IndexKeys SparseData::keys() const {
  IndexKeys keys{keys_memory.data(),
                 DType::kI8,
                 pages,
                 kPageSize,
                 kIndexDim,
                 kPageSize * kIndexDim,
                 kIndexDim,
                 {scales.data(), kPageSize, 1}};
  if (!what.int8_keys) {
    keys.dtype = DType::kU8;
    keys.format = IndexKeyFormat::kDeepGemm;
    keys.page_stride = kPageSize * (kIndexDim + 4);
    keys.scales = {};
  }
  return keys;
}

HeadsView SparseData::index_queries() const {
  return {index_q_memory.data(),   DType::kBF16, what.queries, kIndexHeads, kIndexDim,
          kIndexHeads * kIndexDim, kIndexDim};
}

PagedBatch SparseData::batch() const {
  PagedBatch batch;
  batch.cu_q_lens = cu_q_lens;
  batch.kv_lens = kv_lens;
  batch.page_table = table.data();
  batch.max_pages = batch.page_table_stride = pages;
  return batch;
}

SparseRows SparseData::rows() const {
  if (what.rows == SparseRowFormat::kPlain) {
    return {rows_memory.data(), DType::kBF16, pages * kPageSize, 576, 576};
  }
  const bool v4 = what.rows == SparseRowFormat::kMla584;
  return {rows_memory.data(), DType::kU8,      pages * kPageSize, what.row_dim(), 656,
          v4 ? kPageSize : 0, kPageSize * 584, what.rows};
}

HeadsView SparseData::queries() const {
  return {q_memory.data(), DType::kBF16,   what.queries,
          what.heads,      what.row_dim(), what.heads * what.row_dim(),
          what.row_dim()};
}

std::vector<SparseScope> SparseData::scopes(const int32_t* named) const {
  std::vector<SparseScope> scopes;
  if (what.window > 0) {
    scopes.push_back({rows(), window_slots.data(), what.window, what.window});
  }
  const int64_t cols = std::min(what.k, what.context);
  scopes.push_back({rows(), named, cols, cols});
  return scopes;
}

double SparseData::IndexElement(int64_t slot, int64_t i) const {
  const uint8_t* data = keys_memory.data();
  if (what.int8_keys) {
    return static_cast<int8_t>(data[slot * kIndexDim + i]) *
           double{scales[static_cast<size_t>(slot)]};
  }
  const int64_t page = slot / kPageSize * kPageSize * (kIndexDim + 4);
  return E4M3(data[page + slot % kPageSize * kIndexDim + i]) * 0.25;
}

double SparseData::IndexQuery(int64_t query, int64_t head, int64_t i) const {
  return BF16At(index_q_memory.data(), (query * kIndexHeads + head) * kIndexDim + i);
}

double SparseData::Row(int64_t slot, int64_t i) const {
  const uint8_t* data = rows_memory.data();
  if (what.rows == SparseRowFormat::kPlain) {
    return BF16At(data, slot * 576 + i);
  }
  const bool v4 = what.rows == SparseRowFormat::kMla584;
  const int64_t codes = v4 ? 448 : 512;
  const uint8_t* row =
      v4 ? data + slot / kPageSize * kPageSize * 584 + slot % kPageSize * 576 : data + slot * 656;
  return i < codes ? E4M3(row[i]) / 2 : BF16At(row + (v4 ? 448 : 528), i - codes);
}

double SparseData::Query(int64_t query, int64_t head, int64_t i) const {
  return BF16At(q_memory.data(), (query * what.heads + head) * what.row_dim() + i);
}

int64_t SparseData::Slot(int64_t position) const {
  return int64_t{table[static_cast<size_t>(position / kPageSize)]} * kPageSize +
         position % kPageSize;
}

}  // namespace riffle::cli
