#include "topk/topk_batch.h"

#include <cstring>

namespace riffle::topk {
namespace {

// Stores an index of either type at any alignment.
void StoreIndex(IndexType type, uint8_t* row, int64_t at, int64_t index) {
  const auto size = static_cast<int64_t>(SizeOf(type));
  std::memcpy(row + at * size, &index, static_cast<size_t>(size));  // little-endian
}

template <typename TIndex>
void MapRow(const TIndex* ids, TIndex* indices, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    TIndex column;
    std::memcpy(&column, reinterpret_cast<uint8_t*>(indices) + i * int64_t{sizeof(column)},
                sizeof(column));
    std::memcpy(reinterpret_cast<uint8_t*>(indices) + i * int64_t{sizeof(column)},
                reinterpret_cast<const uint8_t*>(ids) + column * int64_t{sizeof(column)},
                sizeof(column));
  }
}

}  // namespace

RowTask TopKBatch::Task(int64_t row) const {
  const auto element = static_cast<int64_t>(SizeOf(x.dtype));
  const Range range = RangeOf(row);
  RowTask task;
  task.x = static_cast<const uint8_t*>(x.data) + (row * x.row_stride + range.begin) * element;
  task.dtype = x.dtype;
  task.n = range.end - range.begin;
  task.k = std::min(task.n, k.empty() ? width : k[static_cast<size_t>(row)]);
  task.sorted = options.sorted;
  task.largest = options.largest;
  task.values = out.values != nullptr ? ValuesOf(row) : nullptr;
  if (out.index_type == IndexType::kInt64) {
    task.wide_indices = reinterpret_cast<int64_t*>(IndicesOf(row));
    task.indices = reinterpret_cast<int32_t*>(task.wide_indices) + task.k;
  } else {
    task.indices = reinterpret_cast<int32_t*>(IndicesOf(row));
  }
  task.stats = out.stats != nullptr ? out.stats + row : nullptr;
  if (HasWork(task) && options.algorithm != Algorithm::kLaneSort) {
    task.plan = PlanBuckets(task.n, task.k, task.dtype);
  }
  return task;
}

void TopKBatch::MapIds(int64_t row, int64_t count) const {
  const IdsView& ids = options.ids;
  if (ids.data == nullptr) {
    return;
  }
  const auto* from = static_cast<const uint8_t*>(ids.data) +
                     row * ids.row_stride * static_cast<int64_t>(SizeOf(ids.type));
  if (ids.type == IndexType::kInt32) {
    MapRow(reinterpret_cast<const int32_t*>(from), reinterpret_cast<int32_t*>(IndicesOf(row)),
           count);
  } else {
    MapRow(reinterpret_cast<const int64_t*>(from), reinterpret_cast<int64_t*>(IndicesOf(row)),
           count);
  }
}

void TopKBatch::FinishRow(int64_t row, const RowTask& task) const {
  uint8_t* const indices = IndicesOf(row);
  if (InIndexOrder(task)) {
    for (int64_t i = 0; i < task.k; ++i) {
      StoreIndex(out.index_type, indices, i, i);
    }
  }
  MapIds(row, task.k);
  for (int64_t i = task.k; i < width; ++i) {
    StoreIndex(out.index_type, indices, i, -1);
  }
  if (task.values == nullptr) {
    return;
  }
  const uint64_t padding = PadBits(x.dtype, task.largest);
  const size_t element = SizeOf(x.dtype);
  for (int64_t i = task.k; i < width; ++i) {  // little-endian; values may be misaligned
    std::memcpy(static_cast<uint8_t*>(task.values) + static_cast<size_t>(i) * element, &padding,
                element);
  }
}

uint64_t PadBits(DType dtype, bool largest) {
  const uint64_t sign = uint64_t{1} << (8 * SizeOf(dtype) - 1);
  if (!IsFloat(dtype)) {
    const uint64_t lowest = IsUnsigned(dtype) ? 0 : sign;
    const uint64_t highest = lowest ^ (sign - 1 + sign);
    return largest ? lowest : highest;
  }
  const uint64_t inf = dtype == DType::kF64   ? 0x7ff0000000000000u
                       : dtype == DType::kF32 ? 0x7f800000u
                       : dtype == DType::kF16 ? 0x7c00u
                                              : 0x7f80u;
  return largest ? inf | sign : inf;
}

}  // namespace riffle::topk
