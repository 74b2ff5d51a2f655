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
  return type == TensorType::kQ4_K   ? Packing::kQ4
         : type == TensorType::kQ5_0 ? Packing::kQ5
         : type == TensorType::kQ6_K ? Packing::kQ6
                                     : Packing::kQ8;
}

// `codes` [32] of output `lane`, weights + Bias(packing), into a block.
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
    add(quarter % 4, (codes[i] & 15) << (quarter / 4 * 4));
    if (packing == Packing::kQ5) {
      add(4, codes[i] >> 4 << quarter);
    } else if (packing == Packing::kQ6) {
      add(4 + quarter / 4, codes[i] >> 4 << (quarter % 4 * 2));
    }
  }
}

// A block of output `lane` into a panel's, which was zero.
void PackBlock(Packing packing, const Block& from, int64_t lane, uint8_t* block) {
  uint8_t codes[kBlock];
  for (int64_t i = 0; i < kBlock; ++i) {
    codes[i] = static_cast<uint8_t>(from.code[i] + Bias(packing));
  }
  PackCodes(packing, codes, lane, block);
  uint8_t* scales = block + CodeBytes(packing);
  std::memcpy(scales + 2 * lane, &from.d, 2);
  if (packing == Packing::kQ4) {
    std::memcpy(scales + 2 * kPanel + 2 * lane, &from.dmin, 2);
    scales[4 * kPanel + lane] = static_cast<uint8_t>(from.factor[0]);
    scales[5 * kPanel + lane] = from.minimum_factor;
  } else if (packing == Packing::kQ6) {
    scales[2 * kPanel + lane] = static_cast<uint8_t>(from.factor[0]);
    scales[3 * kPanel + lane] = static_cast<uint8_t>(from.factor[1]);
  }
}

void PackPanel(const Matrix& matrix, const Tensor& tensor, RowOrder order, int64_t index) {
  uint8_t* panel = matrix.data.get() + index * matrix.panel_bytes();
  std::memset(panel, 0, static_cast<size_t>(matrix.panel_bytes()));
  std::vector<Block> blocks(static_cast<size_t>(matrix.blocks()));
  for (int64_t lane = 0; lane < kPanel && index * kPanel + lane < matrix.outputs; ++lane) {
    const uint8_t* row = tensor.data + order.Source(index * kPanel + lane) * tensor.row_bytes();
    UnpackRow(tensor.type, row, matrix.inputs, blocks.data());
    for (int64_t b = 0; b < matrix.blocks(); ++b) {
      PackBlock(matrix.packing, blocks[static_cast<size_t>(b)], lane,
                panel + b * BlockBytes(matrix.packing));
    }
  }
}

// panel(tile, panel) for all tiles of rows and panels, tile by tile. With few rows a task takes a
// run of panels: long runs of memory, as long as they can be shared evenly.
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
  ParallelFor(tiles * groups, std::ref(run), pool);
}

constexpr int64_t kFewRows = 4;

}  // namespace

Matrix Pack(const GgufFile& file, const Tensor& tensor, RowOrder order, ThreadPool* pool) {
  if (!CanUnpack(tensor.type)) {
    file.Fail("tensor " + std::string(tensor.name) + " is " + NameOf(tensor.type) +
              "; this program multiplies Q8_0, Q5_0, Q4_K and Q6_K");
  }
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
  ParallelFor(matrix.panels(), std::ref(pack), pool);
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
    if (planes_ == nullptr || step_ == nullptr || sum_ == nullptr) {
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
