#include "examples/gemma3/matrix.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <new>
#include <string>
#include <vector>

#include "examples/gemma3/blocks.h"
#include "examples/gemma3/kernels.h"

namespace riffle::gemma3 {
namespace {

Scales ScalesOf(TensorType type) {
  return type == TensorType::kQ6_K   ? Scales::kTwo
         : type == TensorType::kQ4_K ? Scales::kMinimum
                                     : Scales::kHalf;
}

// `blocks` of output `lane` into a panel. `half` are the f16 scales as the file has them.
void PackOutput(const Matrix& matrix, const Block* blocks, const uint16_t* half, int64_t lane,
                uint8_t* panel) {
  uint8_t* scales = panel + matrix.blocks() * kPanel * kBlock;
  for (int64_t b = 0; b < matrix.blocks(); ++b) {
    for (int64_t i = 0; i < kBlock; i += 4) {
      std::memcpy(panel + b * kPanel * kBlock + i * kPanel + lane * 4, blocks[b].code + i, 4);
    }
    if (matrix.scales == Scales::kHalf) {
      std::memcpy(scales + b * 32 + lane * 2, half + b, 2);
      continue;
    }
    const float second = matrix.scales == Scales::kTwo ? blocks[b].scale[1] : blocks[b].minimum;
    std::memcpy(scales + b * 128 + lane * 4, &blocks[b].scale[0], 4);
    std::memcpy(scales + b * 128 + 64 + lane * 4, &second, 4);
  }
}

void PackPanel(const Matrix& matrix, const Tensor& tensor, int64_t index) {
  uint8_t* panel = matrix.data.get() + index * matrix.panel_bytes();
  std::memset(panel, 0, static_cast<size_t>(matrix.panel_bytes()));
  std::memset(panel, 128, static_cast<size_t>(matrix.blocks() * kPanel * kBlock));
  std::vector<Block> blocks(static_cast<size_t>(matrix.blocks()));
  std::vector<uint16_t> half(static_cast<size_t>(matrix.blocks()));
  const BlockSize size = BlockSizeOf(tensor.type);
  for (int64_t lane = 0; lane < kPanel && index * kPanel + lane < matrix.outputs; ++lane) {
    const uint8_t* row = tensor.data + (index * kPanel + lane) * tensor.row_bytes();
    UnpackRow(tensor.type, row, matrix.inputs, blocks.data());
    for (int64_t b = 0; matrix.scales == Scales::kHalf && b < matrix.blocks(); ++b) {
      std::memcpy(&half[static_cast<size_t>(b)], row + b * size.bytes, 2);
    }
    PackOutput(matrix, blocks.data(), half.data(), lane, panel);
  }
}

}  // namespace

Matrix Pack(const GgufFile& file, const Tensor& tensor, Pool* pool) {
  if (!CanUnpack(tensor.type)) {
    file.Fail("tensor " + std::string(tensor.name) + " is " + NameOf(tensor.type) +
              "; this program multiplies Q8_0, Q5_0, Q4_K and Q6_K");
  }
  Matrix matrix;
  matrix.inputs = tensor.shape[0];
  matrix.outputs = tensor.shape[1];
  matrix.scales = ScalesOf(tensor.type);
  matrix.data = hwy::AllocateAligned<uint8_t>(static_cast<size_t>(matrix.bytes()));
  if (matrix.data == nullptr) {
    file.Fail("no memory for tensor " + std::string(tensor.name));
  }
  const auto pack = [&](int64_t panel) { PackPanel(matrix, tensor, panel); };
  ParallelFor(matrix.panels(), std::ref(pack), pool);
  return matrix;
}

void Activations::Resize(int64_t rows, int64_t inputs) {
  rows_ = rows;
  inputs_ = inputs;
  const size_t needed = static_cast<size_t>(rows * blocks());
  if (needed > capacity_) {
    planes_ = hwy::AllocateAligned<int8_t>(needed * 2 * kBlock);
    step_ = hwy::AllocateAligned<float>(needed);
    correction_ = hwy::AllocateAligned<int32_t>(needed * 2);
    sum_ = hwy::AllocateAligned<float>(needed);
    if (planes_ == nullptr || step_ == nullptr || correction_ == nullptr || sum_ == nullptr) {
      capacity_ = 0;
      throw std::bad_alloc();
    }
    capacity_ = needed;
  }
}

void Multiply(const Activations& x, std::span<const Product> products, Pool* pool) {
  // Panels that a task takes: for few rows long runs of memory, as long as they can be shared
  // evenly.
  int64_t panels = 0;
  for (const Product& product : products) {
    panels += product.weight->panels();
  }
  const int64_t threads = pool != nullptr ? pool->threads() : NumThreads();
  const int64_t group = x.rows() <= 4 ? std::max<int64_t>(1, panels / (threads * 4)) : 1;
  int64_t tasks = 0;
  for (const Product& product : products) {
    tasks += (product.weight->panels() + group - 1) / group;
  }
  const auto run = [&](int64_t task) {
    for (const Product& product : products) {
      const int64_t groups = (product.weight->panels() + group - 1) / group;
      if (task < groups) {
        const int64_t end = std::min(product.weight->panels(), (task + 1) * group);
        MultiplyPanels(x, product, task * group, end);
        return;
      }
      task -= groups;
    }
  };
  ParallelFor(tasks, std::ref(run), pool);
}

}  // namespace riffle::gemma3
