#include "lm_head/linear_call.h"

#include <algorithm>

#include "core/scratch_layout.h"
#include "core/strided.h"
#include "lm_head/linear_check.h"
#include "lm_head/linear_kernels.h"

namespace riffle::lm_head {

LinearCall::LinearCall(const MatrixView& x, const WeightView& weight, const LinearOptions& options)
    : pack_(GetPackKernels()), x_(x) {
  const bool bf16_weight =
      weight.format == WeightFormat::kBF16 || weight.format == WeightFormat::kQ8_0;
  round_to_bf16_ = bf16_weight && (x.dtype == DType::kBF16 || options.round_x);
  args_.bf16_pairs = round_to_bf16_ && pack_.bf16_pairs;
  args_.product = ChooseProduct(weight.format, args_.bf16_pairs);
  args_.d = weight.cols;
  args_.weight = static_cast<const uint8_t*>(weight.data);
  args_.format = weight.format;
  args_.transposed = IsTransposed(weight);
  const int64_t element =
      weight.format == WeightFormat::kQ8_0 ? kQ8BlockBytes : args_.element_bytes();
  args_.weight_stride = args_.transposed
                            ? core::StrideBytes(weight.col_stride, element, weight.cols)
                            : core::StrideBytes(weight.row_stride, element, weight.rows);
  args_.vocab = weight.rows;
  args_.bias = options.bias;
}

size_t LinearCall::PackedXBytes(int64_t rows) const {
  return static_cast<size_t>(rows * args_.k_blocks() * kKBlock * args_.input_bytes());
}

const LinearArgs& LinearCall::PackRows(const int32_t* row_list, int64_t begin, int64_t rows,
                                       uint8_t* operands, core::Lease& lease) {
  HWY_DASSERT(0 < rows && 0 <= begin && begin + rows <= x_.rows);
  args_.x = operands;
  args_.rows = rows;
  args_.packed_rows = rows;
  PackXTask task;
  task.x = static_cast<const uint8_t*>(x_.data);
  task.dtype = x_.dtype;
  task.row_stride =
      core::StrideBytes(x_.row_stride, static_cast<int64_t>(SizeOf(x_.dtype)), x_.rows);
  if (row_list != nullptr) {
    task.row_list = row_list + begin;
  } else {
    task.x += begin * task.row_stride;
  }
  task.rows = rows;
  task.d = args_.d;
  task.round_to_bf16 = round_to_bf16_;
  task.bf16_pairs = args_.bf16_pairs;
  task.operands = operands;
  // Packing 64 Ki elements takes as long as waking the threads.
  if (rows * args_.d > (1 << 16)) {
    lease.Run(rows, [&](int64_t row, uint8_t*) { pack_.x(task, row); });
  } else {
    for (int64_t row = 0; row < rows; ++row) {
      pack_.x(task, row);
    }
  }
  return args_;
}

void RunLinear(LinearCall& call, const OutView<float>& y, core::Lease& lease) {
  const LinearKernels& kernels = GetLinearKernels();
  const ChunkPlan plan = PlanChunks(call.args().vocab, lease.threads());
  const int64_t pass = RowsPerPass(call.rows(), kMaxRowsPerPass);
  StoreTask task;
  task.layout = PlanTileScratch(pass);
  task.row_stride = y.row_stride;
  uint8_t* operands = lease.Shared(call.PackedXBytes(pass));
  lease.ReserveScratch(task.layout.bytes);
  for (int64_t row = 0; row < call.rows(); row += pass) {
    const int64_t rows = std::min(pass, call.rows() - row);
    const LinearArgs& args = call.PackRows(nullptr, row, rows, operands, lease);
    task.y = y.data + row * y.row_stride;
    lease.Run(plan.chunks, [&](int64_t chunk, uint8_t* scratch) {
      kernels.store_tiles(args, plan.Begin(chunk), plan.End(chunk), task, scratch);
    });
  }
}

}  // namespace riffle::lm_head
