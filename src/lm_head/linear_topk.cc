// The doors of the linear layer: validate, plan, run.
#include "riffle/linear_topk.h"

#include <algorithm>
#include <new>

#include "core/check.h"
#include "core/entry_point.h"
#include "core/order.h"
#include "core/targets.h"
#include "lm_head/linear_call.h"
#include "lm_head/linear_check.h"
#include "lm_head/screened_topk.h"

namespace riffle {
namespace {

// What the pieces of a pass leave behind, in shared memory.
lm_head::KeptLists ListsAt(const lm_head::KeptLayout& layout, int64_t rows, uint8_t* at) {
  lm_head::KeptLists lists;
  lists.counts = reinterpret_cast<int64_t*>(at + layout.counts);
  lists.keys = reinterpret_cast<int32_t*>(at + layout.keys);
  lists.columns = reinterpret_cast<int32_t*>(at + layout.columns);
  lists.bounds = reinterpret_cast<std::atomic<int32_t>*>(at + layout.bounds);
  for (int64_t row = 0; row < rows; ++row) {
    new (lists.bounds + row) std::atomic<int32_t>(core::kF32Format.lowest_key());
  }
  return lists;
}

}  // namespace

lm_head::LinearCall::LinearCall(const MatrixView& x, const WeightView& weight,
                                const LinearOptions& options)
    : kernels_(lm_head::GetLinearKernels()), x_(x) {
  const bool bf16_weight =
      weight.format == WeightFormat::kBF16 || weight.format == WeightFormat::kQ8_0;
  round_ = bf16_weight && (x.dtype == DType::kBF16 || options.round_x);
  args_.words_of_bf16 = round_ && kernels_.native_bf16;
  args_.d = weight.cols;
  args_.weight = static_cast<const uint8_t*>(weight.data);
  args_.format = weight.format;
  args_.transposed = lm_head::IsTransposed(weight);
  const int64_t element = weight.format == WeightFormat::kQ8_0  ? kQ8BlockBytes
                          : weight.format == WeightFormat::kF32 ? 4
                                                                : 2;
  args_.weight_stride = (args_.transposed ? weight.col_stride : weight.row_stride) * element;
  args_.vocab = weight.rows;
  args_.bias = options.bias;
}

size_t lm_head::LinearCall::WordBytes(int64_t rows) const {
  return static_cast<size_t>(rows * args_.spans()) * lm_head::kSpan * (args_.words_of_bf16 ? 2 : 4);
}

const lm_head::LinearArgs& lm_head::LinearCall::Take(const int32_t* order, int64_t begin,
                                                     int64_t rows, uint8_t* words,
                                                     core::Lease& lease) {
  args_.x = words;
  args_.rows = rows;
  args_.laid_out = rows;
  lm_head::LayOutX task;
  task.x = static_cast<const uint8_t*>(x_.data);
  task.dtype = x_.dtype;
  task.row_stride = x_.row_stride * static_cast<int64_t>(SizeOf(x_.dtype));
  if (order != nullptr) {
    task.order = order + begin;
  } else {
    task.x += begin * task.row_stride;
  }
  task.rows = rows;
  task.d = args_.d;
  task.to_bf16 = round_;
  task.words_of_bf16 = args_.words_of_bf16;
  task.words = words;
  // Waking the threads costs as much as 64 Ki elements.
  if (rows * args_.d > (1 << 16)) {
    lease.Run(rows, [&](int64_t row, uint8_t*) { kernels_.lay_out_x(task, row); });
  } else {
    for (int64_t row = 0; row < rows; ++row) {
      kernels_.lay_out_x(task, row);
    }
  }
  return args_;
}

lm_head::PlainTopK::PlainTopK(const lm_head::LinearCall& call, int64_t rows, int64_t k, int threads)
    : pieces_(lm_head::PlanPieces(call.args().vocab, threads)) {
  sink_.plan = lm_head::PlanCandidates(rows, k, pieces_);
  sink_.k = k;
  sink_.layout = lm_head::PlanLists(sink_.plan, lm_head::PlanTileScratch(sink_.plan.rows).bytes);
  finish_.layout = lm_head::PlanFinishLists(sink_.plan, pieces_.pieces);
  finish_.pieces = pieces_.pieces;
  finish_.limit = sink_.plan.limit;
  finish_.k = k;
  kept_ = lm_head::PlanKept(sink_.plan, pieces_.pieces);
  word_bytes_ = call.WordBytes(sink_.plan.rows);
}

size_t lm_head::PlainTopK::scratch_bytes() const {
  return std::max(sink_.layout.bytes, finish_.layout.bytes);
}

void lm_head::PlainTopK::Run(lm_head::LinearCall& call, const int32_t* order, int64_t all,
                             const LinearTopKOut& out, uint8_t* shared, core::Lease& lease) const {
  lm_head::CandidateSink sink = sink_;
  lm_head::FinishTask finish = finish_;
  for (int64_t begin = 0; begin < all; begin += sink.plan.rows) {
    const int64_t rows = std::min(sink.plan.rows, all - begin);
    const lm_head::LinearArgs& args = call.Take(order, begin, rows, shared, lease);
    sink.kept = finish.kept = ListsAt(kept_, rows, shared + word_bytes_);
    finish.rows = rows;
    lease.Run(pieces_.pieces, [&](int64_t piece, uint8_t* scratch) {
      lm_head::CandidateSink of_piece = sink;
      of_piece.piece = piece;
      call.kernels().keep_tiles(args, pieces_.Begin(piece), pieces_.End(piece), of_piece, scratch);
    });
    lease.Run(rows, [&](int64_t r, uint8_t* scratch) {
      const int64_t row = order != nullptr ? order[begin + r] : begin + r;
      lm_head::FinishTask task = finish;
      task.row = r;
      task.values = out.values + row * out.values_stride;
      task.indices = out.indices + row * out.indices_stride;
      call.kernels().finish_row(task, scratch);
    });
  }
}

void Linear(const MatrixView& x, const WeightView& weight, const OutView<float>& y,
            const LinearOptions& options) try {
  const core::EntryPoint entry;
  lm_head::CheckLinear(x, weight, y, options);
  core::EnsureTarget();
  if (x.rows == 0) {
    return;
  }
  lm_head::LinearCall call(x, weight, options);
  core::Lease lease(options.pool);
  const lm_head::PiecePlan plan = lm_head::PlanPieces(weight.rows, lease.threads());
  const int64_t pass = lm_head::RowsPerPass(x.rows, lm_head::kMaxRowsPerPass);
  uint8_t* words = lease.Shared(call.WordBytes(pass));
  lease.ReserveScratch(lm_head::PlanTileScratch(pass).bytes);
  for (int64_t row = 0; row < x.rows; row += pass) {
    const lm_head::LinearArgs& args =
        call.Take(nullptr, row, std::min(pass, x.rows - row), words, lease);
    const lm_head::StoreSink sink{y.data + row * y.row_stride, y.row_stride};
    lease.Run(plan.pieces, [&](int64_t piece, uint8_t* scratch) {
      call.kernels().store_tiles(args, plan.Begin(piece), plan.End(piece), sink, scratch);
    });
  }
} catch (...) {
  core::RethrowAsError();
}

void LinearTopK(const MatrixView& x, const WeightView& weight, int64_t k, const LinearTopKOut& out,
                const LinearOptions& options) try {
  const core::EntryPoint entry;
  lm_head::LinearTopKBy(lm_head::Screening::kAuto, x, weight, k, out, options, nullptr);
} catch (...) {
  core::RethrowAsError();
}

}  // namespace riffle
