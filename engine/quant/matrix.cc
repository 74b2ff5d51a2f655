#include "engine/quant/matrix.h"

#include <algorithm>
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

// Packs a block of output `lane` into a panel's block. Pre: that was zero.
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

// Calls panel(tile, panel) for all tiles of rows and panels, tile by tile. With few rows a task
// takes consecutive panels: runs of memory as long as an even division allows.
template <typename Panel>
void ForPanels(int64_t tiles, int64_t panels, bool few_rows, ThreadPool* pool, const Panel& panel) {
  const int64_t threads = pool != nullptr ? pool->threads() : NumThreads();
  const int64_t group = few_rows ? std::max<int64_t>(1, panels / (threads * 4)) : 1;
  const int64_t groups = (panels + group - 1) / group;
  const auto run = [&](int64_t task) {
    const int64_t first = task % groups * group;
    const int64_t last = std::min(panels, first + group);
    for (int64_t i = first; i < last; ++i) {
      panel(task / groups, i);
    }
  };
  ParallelFor(tiles * groups, std::ref(run), {.pool = pool});
}

constexpr int64_t kFewRows = 4;

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
  ForPanels(x.tiles(), panels, x.rows() <= kFewRows, pool, [&](int64_t tile, int64_t panel) {
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
  ForPanels(x.tiles(), gate.panels(), x.rows() <= kFewRows, pool, [&](int64_t tile, int64_t panel) {
    MultiplyGatedPanel(x, tile, gate, up, activation, panel, out);
  });
}

}  // namespace riffle::engine
