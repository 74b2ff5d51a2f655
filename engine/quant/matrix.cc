#include "engine/quant/matrix.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>
#include <new>
#include <string>
#include <vector>

#include "engine/layers/row_kernels.h"
#include "engine/quant/blocks.h"
#include "riffle/error.h"

namespace riffle::engine {
namespace {

Packing PackingOf(TensorType type) {
  switch (type) {
    case TensorType::kF32:
      return Packing::kF32;
    case TensorType::kF16:
      return Packing::kF16;
    case TensorType::kBF16:
      return Packing::kBF16;
    case TensorType::kQ2_K:
      return Packing::kQ2;
    case TensorType::kQ4_0:
      return Packing::kQ4;
    case TensorType::kQ4_1:
    case TensorType::kQ4_K:
      return Packing::kQ4Minimum;
    case TensorType::kQ5_0:
      return Packing::kQ5;
    case TensorType::kQ5_1:
    case TensorType::kQ5_K:
      return Packing::kQ5Minimum;
    case TensorType::kQ3_K:
    case TensorType::kQ6_K:
      return Packing::kQ6;
    case TensorType::kQ8_0:
    case TensorType::kIQ4_NL:
      return Packing::kQ8;
  }
  return Packing::kF32;
}

// Packs `codes` [32] of output `lane`, which are weights + Bias(packing), into a block.
void PackCodes(Packing packing, const uint8_t* codes, int64_t lane, uint8_t* block) {
  for (int64_t i = 0; i < kBlock; ++i) {
    const int64_t quarter = i / 4;
    const int64_t place = lane * 4 + i % 4;
    const auto at = [&](int64_t vector) -> uint8_t& { return block[vector * 4 * kPanel + place]; };
    const auto add = [&](int64_t vector, int64_t bits) {
      at(vector) |= static_cast<uint8_t>(bits);
    };
    if (packing == Packing::kQ8) {
      at(quarter) = codes[i];
      continue;
    }
    if (packing == Packing::kQ2) {
      add(quarter / 4, codes[i] << (quarter % 4 * 2));
      continue;
    }
    add(quarter % 4, (codes[i] & 15) << (quarter / 4 * 4));
    if (packing == Packing::kQ5 || packing == Packing::kQ5Minimum) {
      add(4, codes[i] >> 4 << quarter);
    } else if (packing == Packing::kQ6) {
      add(4 + quarter / 4, codes[i] >> 4 << (quarter % 4 * 2));
    }
  }
}

// Packs a block of output `lane` into a panel's block. Pre: those bytes of the panel are zero.
void PackBlock(Packing packing, const Block& from, int64_t lane, uint8_t* block) {
  uint8_t codes[kBlock];
  for (int64_t i = 0; i < kBlock; ++i) {
    codes[i] = static_cast<uint8_t>(from.code[i] + Bias(packing));
  }
  PackCodes(packing, codes, lane, block);
  uint8_t* scales = block + CodeBytes(packing);
  std::memcpy(scales + 2 * lane, &from.d, 2);
  uint8_t* factors = block + FactorsAt(packing) + lane;
  const int halves = HasHalves(packing) ? 2 : 1;
  if (HasMinimum(packing) || HasHalves(packing)) {
    for (int half = 0; half < halves; ++half, factors += kPanel) {
      *factors = static_cast<uint8_t>(from.factor[half]);
    }
  }
  if (HasMinimum(packing)) {
    std::memcpy(scales + 2 * kPanel + 2 * lane, &from.dmin, 2);
    for (int half = 0; half < halves; ++half, factors += kPanel) {
      *factors = from.minimum_factor[half];
    }
  }
}

// Copies the elements of all inputs of output `lane` into a panel without blocks.
void PackDense(const Matrix& matrix, const uint8_t* row, int64_t lane, uint8_t* panel) {
  const int64_t size = matrix.packing == Packing::kF32 ? 4 : 2;
  for (int64_t i = 0; i < matrix.inputs; ++i) {
    std::memcpy(panel + (i * kPanel + lane) * size, row + i * size, static_cast<size_t>(size));
  }
}

void PackPanel(const Matrix& matrix, const Tensor& tensor, RowOrder order, int64_t index) {
  uint8_t* panel = matrix.data.get() + index * matrix.panel_bytes();
  std::memset(panel, 0, static_cast<size_t>(matrix.panel_bytes()));
  std::vector<Block> blocks(static_cast<size_t>(matrix.blocks()));
  for (int64_t lane = 0; lane < kPanel && index * kPanel + lane < matrix.outputs; ++lane) {
    const uint8_t* row = tensor.data + order.Source(index * kPanel + lane) * tensor.row_bytes();
    if (IsDense(matrix.packing)) {
      PackDense(matrix, row, lane, panel);
      continue;
    }
    UnpackRow(tensor.type, row, matrix.inputs, blocks.data());
    for (int64_t b = 0; b < matrix.blocks(); ++b) {
      PackBlock(matrix.packing, blocks[static_cast<size_t>(b)], lane,
                panel + b * BlockBytes(matrix.packing));
    }
  }
}

// A thread's share of the panels of a loop. It takes them from the front, so that it reads memory
// sequentially; threads that have finished their own share steal from the back.
class alignas(64) PanelRange {
 public:
  void Set(int64_t begin, int64_t end) {
    range_.store(static_cast<uint64_t>(begin) << 32 | static_cast<uint64_t>(end),
                 std::memory_order_relaxed);
  }
  int64_t TakeFront() { return Take(true); }
  int64_t TakeBack() { return Take(false); }

 private:
  // -1: none is left.
  int64_t Take(bool front) {
    uint64_t range = range_.load(std::memory_order_relaxed);
    for (;;) {
      const uint64_t begin = range >> 32;
      const uint64_t end = range & 0xffffffff;
      if (begin >= end) {
        return -1;
      }
      const uint64_t rest = front ? range + (uint64_t{1} << 32) : range - 1;
      if (range_.compare_exchange_weak(range, rest, std::memory_order_relaxed)) {
        return static_cast<int64_t>(front ? begin : end - 1);
      }
    }
  }

  std::atomic<uint64_t> range_{0};  // the first panel in the upper half, the end in the lower one
};

// Calls panel(i) for all panels of one tile of few rows. A panel then takes less than 1 us, most of
// it to read the weights.
template <typename Panel>
void ForPanelsOfATile(int64_t panels, ThreadPool* pool, const Panel& panel) {
  constexpr int64_t kMaxRanges = 64;  // fewer threads than this saturate memory bandwidth
  const int64_t threads = pool != nullptr ? pool->threads() : NumThreads();
  const int64_t count = std::min({threads, panels, kMaxRanges});
  PanelRange ranges[kMaxRanges];
  for (int64_t i = 0; i < count; ++i) {
    ranges[i].Set(panels * i / count, panels * (i + 1) / count);
  }
  const auto run = [&](int64_t mine) {
    for (int64_t i = ranges[mine].TakeFront(); i >= 0; i = ranges[mine].TakeFront()) {
      panel(i);
    }
    for (int64_t next = 1; next < count; ++next) {
      PanelRange& other = ranges[(mine + next) % count];
      for (int64_t i = other.TakeBack(); i >= 0; i = other.TakeBack()) {
        panel(i);
      }
    }
  };
  ParallelFor(count, std::ref(run), {.pool = pool});
}

constexpr int64_t kFewRows = 4;

// Calls panel(tile, panel) for all tiles of rows and panels, tile by tile.
template <typename Panel>
void ForPanels(const Activations& x, int64_t panels, ThreadPool* pool, const Panel& panel) {
  if (x.rows() <= kFewRows) {
    ForPanelsOfATile(panels, pool, [&](int64_t i) { panel(0, i); });
    return;
  }
  const auto run = [&](int64_t task) { panel(task / panels, task % panels); };
  ParallelFor(x.tiles() * panels, std::ref(run), {.pool = pool});
}

}  // namespace

Matrix Pack(const GgufFile& file, const Tensor& tensor, RowOrder order, ThreadPool* pool) {
  Matrix matrix;
  matrix.inputs = tensor.shape[0];
  matrix.outputs = tensor.shape[1];
  matrix.packing = PackingOf(tensor.type);
  matrix.data = hwy::AllocateAligned<uint8_t>(static_cast<size_t>(matrix.bytes()));
  if (matrix.data == nullptr) {
    throw Error(Code::kOutOfMemory, file.path() + ": no memory for tensor " +
                                        std::string(tensor.name) + ", " +
                                        std::to_string(matrix.bytes()) + " bytes");
  }
  const auto pack = [&](int64_t panel) { PackPanel(matrix, tensor, order, panel); };
  ParallelFor(matrix.panels(), std::ref(pack), {.pool = pool});
  return matrix;
}

void Activations::Resize(int64_t rows, int64_t inputs) {
  rows_ = rows;
  inputs_ = inputs;
  const size_t needed = static_cast<size_t>(rows * blocks());
  if (needed > capacity_) {
    planes_ = hwy::AllocateAligned<uint8_t>(needed * 2 * kBlock);
    step_ = hwy::AllocateAligned<float>(needed);
    sum_ = hwy::AllocateAligned<float>(needed);
    first_sum_ = hwy::AllocateAligned<float>(needed);
    if (planes_ == nullptr || step_ == nullptr || sum_ == nullptr || first_sum_ == nullptr) {
      capacity_ = 0;
      throw std::bad_alloc();
    }
    capacity_ = needed;
  }
}

void Multiply(const Activations& x, std::span<const Product> products, ThreadPool* pool) {
  int64_t panels = 0;
  for (const Product& product : products) {
    panels += product.weight->panels();
  }
  ForPanels(x, panels, pool, [&](int64_t tile, int64_t panel) {
    for (const Product& product : products) {
      if (panel < product.weight->panels()) {
        MultiplyPanel(x, tile, product, panel);
        return;
      }
      panel -= product.weight->panels();
    }
  });
}

void MultiplyGated(const Activations& x, const Matrix& gate, const Matrix& up,
                   Activation activation, Activations& out, ThreadPool* pool) {
  ForPanels(x, gate.panels(), pool, [&](int64_t tile, int64_t panel) {
    MultiplyGatedPanel(x, tile, gate, up, activation, panel, out);
  });
}

}  // namespace riffle::engine
