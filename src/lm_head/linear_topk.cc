// The doors of the linear layer: validate, plan, run.
#include "riffle/linear_topk.h"

#include <algorithm>
#include <new>

#include "core/check.h"
#include "core/order.h"
#include "core/parallel.h"
#include "core/targets.h"
#include "lm_head/linear_check.h"
#include "lm_head/linear_kernels.h"
#include "lm_head/linear_plan.h"

namespace riffle {
namespace {

// A checked call: which words it takes, and rows of x as words.
class Call {
 public:
  Call(const MatrixView& x, const WeightView& weight, const LinearOptions& options)
      : kernels_(GetLinearKernels()), x_(x) {
    const bool bf16_weight =
        weight.format == WeightFormat::kBF16 || weight.format == WeightFormat::kQ8_0;
    round_ = bf16_weight && (x.dtype == DType::kBF16 || options.round_x);
    args_.words_of_bf16 = round_ && kernels_.native_bf16;
    args_.d = weight.cols;
    args_.weight = static_cast<const uint8_t*>(weight.data);
    args_.format = weight.format;
    args_.transposed = IsTransposed(weight);
    const int64_t element = weight.format == WeightFormat::kQ8_0  ? kQ8BlockBytes
                            : weight.format == WeightFormat::kF32 ? 4
                                                                  : 2;
    args_.weight_stride = (args_.transposed ? weight.col_stride : weight.row_stride) * element;
    args_.vocab = weight.rows;
    args_.bias = options.bias;
  }

  // Bytes of the words of `rows` rows.
  size_t WordBytes(int64_t rows) const {
    return static_cast<size_t>(rows * args_.spans()) * kSpan * (args_.words_of_bf16 ? 2 : 4);
  }

  // Lays out rows [begin, begin + rows) at `words`.
  const LinearArgs& Take(int64_t begin, int64_t rows, uint8_t* words, Lease& lease) {
    args_.x = words;
    args_.rows = rows;
    LayOutX task;
    task.x = static_cast<const uint8_t*>(x_.data);
    task.dtype = x_.dtype;
    task.row_stride = x_.row_stride * static_cast<int64_t>(SizeOf(x_.dtype));
    task.x += begin * task.row_stride;
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

  const LinearKernels& kernels() const { return kernels_; }

 private:
  const LinearKernels& kernels_;
  MatrixView x_;
  bool round_ = false;
  LinearArgs args_;
};

// What the pieces of a pass leave behind, in shared memory.
KeptLists ListsAt(const KeptLayout& layout, int64_t rows, uint8_t* at) {
  KeptLists lists;
  lists.counts = reinterpret_cast<int64_t*>(at + layout.counts);
  lists.keys = reinterpret_cast<int32_t*>(at + layout.keys);
  lists.columns = reinterpret_cast<int32_t*>(at + layout.columns);
  lists.bounds = reinterpret_cast<std::atomic<int32_t>*>(at + layout.bounds);
  for (int64_t row = 0; row < rows; ++row) {
    new (lists.bounds + row) std::atomic<int32_t>(kF32Format.lowest_key());
  }
  return lists;
}

}  // namespace

void Linear(const MatrixView& x, const WeightView& weight, const OutView<float>& y,
            const LinearOptions& options) {
  CheckLinear(x, weight, y, options);
  EnsureTarget();
  if (x.rows == 0) {
    return;
  }
  Call call(x, weight, options);
  Lease lease(options.pool);
  const PiecePlan plan = PlanPieces(weight.rows, lease.threads());
  const int64_t pass = RowsPerPass(x.rows, kMaxRowsPerPass);
  uint8_t* words = lease.Shared(call.WordBytes(pass));
  lease.ReserveScratch(PlanTileScratch(pass).bytes);
  for (int64_t row = 0; row < x.rows; row += pass) {
    const LinearArgs& args = call.Take(row, std::min(pass, x.rows - row), words, lease);
    const StoreSink sink{y.data + row * y.row_stride, y.row_stride};
    lease.Run(plan.pieces, [&](int64_t piece, uint8_t* scratch) {
      call.kernels().store_tiles(args, plan.Begin(piece), plan.End(piece), sink, scratch);
    });
  }
}

void LinearTopK(const MatrixView& x, const WeightView& weight, int64_t k, const LinearTopKOut& out,
                const LinearOptions& options) {
  CheckLinearTopK(x, weight, k, out, options);
  EnsureTarget();
  if (x.rows == 0) {
    return;
  }
  Call call(x, weight, options);
  Lease lease(options.pool);
  const PiecePlan plan = PlanPieces(weight.rows, lease.threads());
  CandidateSink sink;
  sink.plan = PlanCandidates(x.rows, k, plan);
  sink.k = k;
  sink.layout = PlanLists(sink.plan, PlanTileScratch(sink.plan.rows).bytes);
  FinishTask finish;
  finish.layout = PlanFinishLists(sink.plan, plan.pieces);
  finish.pieces = plan.pieces;
  finish.limit = sink.plan.limit;
  finish.k = k;
  const KeptLayout kept = PlanKept(sink.plan, plan.pieces);
  const size_t word_bytes = call.WordBytes(sink.plan.rows);
  uint8_t* words = lease.Shared(word_bytes + kept.bytes);
  lease.ReserveScratch(std::max(sink.layout.bytes, finish.layout.bytes));
  for (int64_t row = 0; row < x.rows; row += sink.plan.rows) {
    const int64_t rows = std::min(sink.plan.rows, x.rows - row);
    const LinearArgs& args = call.Take(row, rows, words, lease);
    sink.kept = finish.kept = ListsAt(kept, rows, words + word_bytes);
    finish.rows = rows;
    lease.Run(plan.pieces, [&](int64_t piece, uint8_t* scratch) {
      CandidateSink of_piece = sink;
      of_piece.piece = piece;
      call.kernels().keep_tiles(args, plan.Begin(piece), plan.End(piece), of_piece, scratch);
    });
    lease.Run(rows, [&](int64_t r, uint8_t* scratch) {
      FinishTask task = finish;
      task.row = r;
      task.values = out.values + (row + r) * out.values_stride;
      task.indices = out.indices + (row + r) * out.indices_stride;
      call.kernels().finish_row(task, scratch);
    });
  }
}

}  // namespace riffle
