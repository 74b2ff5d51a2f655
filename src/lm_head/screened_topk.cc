#include "lm_head/screened_topk.h"

#include <algorithm>
#include <new>

#include "core/order.h"
#include "core/targets.h"
#include "lm_head/linear_call.h"
#include "lm_head/linear_check.h"
#include "lm_head/screen_kernels.h"

namespace riffle::lm_head {
namespace {

bool Screens(Screening screening, const LinearCall& call, int64_t k) {
  const LinearArgs& args = call.args();
  if (screening == Screening::kAuto) {
    return GetScreenKernels().native && ScreenPays(k, args);
  }
  return screening == Screening::kAlways && args.format == WeightFormat::kQ8_0 && args.d > 0 &&
         args.d <= kMostScreenedInputs;
}

// Rows of a call by way of the screen.
class ScreenedTopK {
 public:
  ScreenedTopK(const LinearCall& call, int64_t k, int threads)
      : kernels_(GetScreenKernels()), pieces_(PlanPieces(call.args().vocab, threads)) {
    sink_.plan = PlanScreen(call.rows(), k);
    sink_.layout = PlanScreenScratch(sink_.plan);
    sink_.k = k;
    word_bytes_ = call.WordBytes(sink_.plan.rows);
    shared_ = PlanScreenShared(sink_.plan, call.args().d);
    finish_ = PlanScreenFinish(sink_.plan);
  }

  size_t shared_bytes() const { return word_bytes_ + shared_.bytes; }
  size_t scratch_bytes() const { return std::max(sink_.layout.bytes, finish_.bytes); }

  // Appends the rows that it gives up to `given_up`, and counts.
  void Run(LinearCall& call, const LinearTopKOut& out, uint8_t* shared, core::Lease& lease,
           int32_t* given_up, ScreenStats& stats) const {
    for (int64_t begin = 0; begin < call.rows(); begin += sink_.plan.rows) {
      const int64_t rows = std::min(sink_.plan.rows, call.rows() - begin);
      ScreenArgs args;
      args.linear = call.Take(nullptr, begin, rows, shared, lease);
      ScreenSink sink = sink_;
      Place(shared + word_bytes_, rows, args, sink.lists);
      Quantize(args, sink.lists, lease);
      lease.Run(pieces_.pieces, [&](int64_t piece, uint8_t* scratch) {
        ScreenSink of_piece = sink;
        of_piece.piece = piece;
        kernels_.screen_tiles(args, pieces_.Begin(piece), pieces_.End(piece), of_piece, scratch);
      });
      std::atomic<int64_t> multiplied{0};
      lease.Run(rows, [&](int64_t row, uint8_t* scratch) {
        if (sink.lists.given_up[row].load(std::memory_order_relaxed) == 0) {
          multiplied += Finish(call, args, sink, row, begin, out, scratch);
        }
      });
      stats.multiplied += multiplied;
      for (int64_t row = 0; row < rows; ++row) {
        if (sink.lists.given_up[row].load(std::memory_order_relaxed) != 0) {
          given_up[stats.given_up++] = static_cast<int32_t>(begin + row);
        } else {
          ++stats.screened;
        }
      }
    }
  }

 private:
  template <class T>
  static std::atomic<T>* Atomics(uint8_t* at, int64_t count, T value) {
    auto* atomics = reinterpret_cast<std::atomic<T>*>(at);
    for (int64_t i = 0; i < count; ++i) {
      new (atomics + i) std::atomic<T>(value);
    }
    return atomics;
  }

  void Place(uint8_t* at, int64_t rows, ScreenArgs& args, ScreenLists& lists) const {
    args.x = reinterpret_cast<ScreenBlock*>(at + shared_.x);
    args.few = reinterpret_cast<FewScreenChunk*>(at + shared_.few);
    args.errors = reinterpret_cast<ScreenError*>(at + shared_.errors);
    lists.bounds = Atomics(at + shared_.bounds, rows, core::kF32Format.lowest_key());
    lists.locks = Atomics(at + shared_.locks, rows, int32_t{0});
    lists.given_up = Atomics(at + shared_.given_up, rows, int32_t{0});
    lists.left = Atomics(at + shared_.left, 1, static_cast<int32_t>(rows));
    lists.counts = reinterpret_cast<int64_t*>(at + shared_.counts);
    std::fill_n(lists.counts, rows, 0);
    lists.lowers = reinterpret_cast<int32_t*>(at + shared_.lowers);
    lists.uppers = reinterpret_cast<float*>(at + shared_.uppers);
    lists.columns = reinterpret_cast<int32_t*>(at + shared_.columns);
    lists.stride = shared_.stride;
  }

  void Quantize(const ScreenArgs& args, const ScreenLists& lists, core::Lease& lease) const {
    const auto quantize = [&](int64_t row) {
      if (!kernels_.quantize_row(args, row)) {
        lists.GiveUp(row);
      }
    };
    if (args.linear.rows * args.linear.d > (1 << 15)) {
      lease.Run(args.linear.rows, [&](int64_t row, uint8_t*) { quantize(row); });
    } else {
      for (int64_t row = 0; row < args.linear.rows; ++row) {
        quantize(row);
      }
    }
  }

  int64_t Finish(const LinearCall& call, const ScreenArgs& args, const ScreenSink& sink,
                 int64_t row, int64_t begin, const LinearTopKOut& out, uint8_t* scratch) const {
    ScreenedRow task;
    task.lists = sink.lists;
    task.layout = finish_;
    task.row = row;
    task.k = sink.k;
    task.values = out.values + (begin + row) * out.values_stride;
    task.indices = out.indices + (begin + row) * out.indices_stride;
    return call.kernels().finish_screened(args.linear, task, scratch);
  }

  const ScreenKernels& kernels_;
  PiecePlan pieces_;
  ScreenSink sink_;
  ScreenShared shared_;
  ScreenFinish finish_;
  size_t word_bytes_;
};

}  // namespace

void LinearTopKBy(Screening screening, const MatrixView& x, const WeightView& weight, int64_t k,
                  const LinearTopKOut& out, const LinearOptions& options, ScreenStats* stats) {
  CheckLinearTopK(x, weight, k, out, options);
  core::EnsureTarget();
  if (x.rows == 0) {
    return;
  }
  LinearCall call(x, weight, options);
  core::Lease lease(options.pool);
  const PlainTopK plain(call, x.rows, k, lease.threads());
  if (!Screens(screening, call, k)) {
    uint8_t* shared = lease.Shared(plain.shared_bytes());
    lease.ReserveScratch(plain.scratch_bytes());
    return plain.Run(call, nullptr, x.rows, out, shared, lease);
  }
  const ScreenedTopK screened(call, k, lease.threads());
  const size_t order_bytes = (static_cast<size_t>(x.rows) * sizeof(int32_t) + 63) / 64 * 64;
  uint8_t* shared =
      lease.Shared(order_bytes + std::max(plain.shared_bytes(), screened.shared_bytes()));
  lease.ReserveScratch(std::max(plain.scratch_bytes(), screened.scratch_bytes()));
  auto* given_up = reinterpret_cast<int32_t*>(shared);
  ScreenStats counts;
  screened.Run(call, out, shared + order_bytes, lease, given_up, counts);
  if (counts.given_up > 0) {
    plain.Run(call, given_up, counts.given_up, out, shared + order_bytes, lease);
  }
  if (stats != nullptr) {
    *stats = counts;
  }
}

}  // namespace riffle::lm_head
