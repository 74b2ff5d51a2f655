#include "sampling/sampling_batch.h"

#include <algorithm>

#include "sampling/random.h"

namespace riffle::sampling {

SamplingBatch::SamplingBatch(const MatrixView& call_logits, const SampleOptions& call_options,
                             bool call_draws)
    : logits(call_logits),
      options(call_options),
      draws(call_draws),
      kernels(GetSamplingKernels()),
      topk(topk::Kernels(call_logits.dtype)),
      element(SizeOf(call_logits.dtype)),
      blocks(SumBlocks(call_logits.cols)) {}

RowPlan SamplingBatch::Plan(int64_t row) const {
  return PlanRow({ValueForRow(options.temperature, row, 1.0f), ValueForRow(options.top_k, row, 0),
                  ValueForRow(options.top_p, row, 1.0f), ValueForRow(options.min_p, row, 0.0f)},
                 logits.cols, draws);
}

double SamplingBatch::Random(int64_t row, size_t which) const {
  return Uniform(ValueForRow(options.seeds, row, options.seed),
                 ValueForRow(options.stream, row, row),
                 ValueForRow(options.position, row, int64_t{0}), which);
}

int64_t SamplingBatch::BlockEnd(int64_t block) const {
  return std::min(BlockBegin(block + 1), logits.cols);
}

topk::RowTask SamplingBatch::TopKTask(int64_t row, const Candidates& out) const {
  topk::RowTask task;
  task.x = RowData(row);
  task.dtype = logits.dtype;
  task.n = logits.cols;
  task.k = out.count;
  task.plan = topk::PlanBuckets(task.n, task.k);
  task.values = out.values;
  task.indices = out.indices;
  return task;
}

void SamplingBatch::FindBest(int64_t row, const Candidates& out, uint8_t* scratch) const {
  topk.row(TopKTask(row, out), scratch);
}

size_t SamplingBatch::TopKScratch(int64_t row, int64_t count) const {
  return topk::BucketMaximaScratch(TopKTask(row, {nullptr, nullptr, count}));
}

}  // namespace riffle::sampling
