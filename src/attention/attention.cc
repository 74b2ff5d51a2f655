// The entry points of attention: validate, plan, run.
#include "riffle/attention.h"
#include "riffle/roofline.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <new>

#include "attention/attention_batch.h"
#include "attention/attention_check.h"
#include "attention/attention_kernels.h"
#include "core/check.h"
#include "core/entry_point.h"
#include "core/lease.h"
#include "core/stopwatch.h"
#include "core/targets.h"

namespace riffle {
namespace {

// Of a PagedKv or its scales.
template <typename View>
attention::KvBytes Bytes(const View& kv, size_t element_size) {
  const auto element = static_cast<int64_t>(element_size);
  return {static_cast<const uint8_t*>(kv.data), kv.page_stride * element, kv.token_stride * element,
          kv.head_stride * element};
}

attention::KvPages PoolBytes(const PagedKv& kv) {
  const size_t element = SizeOf(kv.dtype);
  return {Bytes(kv, kv.scales.data != nullptr ? 1 : element), Bytes(kv.scales, element),
          kv.scales.divisor};
}

attention::AttentionArgs PoolArgs(const PagedKv& keys, const PagedKv& values,
                                  const attention::AttentionShape& shape,
                                  const attention::PlannedBatch& batch) {
  attention::AttentionArgs args{};
  args.keys = PoolBytes(keys);
  args.values = PoolBytes(values);
  args.kv_dtype = keys.dtype;
  args.kv_int8 = keys.scales.data != nullptr;
  args.page_size = static_cast<int>(keys.page_size);
  args.page_numbers = batch.page_numbers.data();
  args.page_begin = batch.page_begin.data();
  args.kv_lens = batch.kv_lens.data();
  args.cu_q_lens = batch.cu_q_lens.empty() ? nullptr : batch.cu_q_lens.data();
  args.shape = shape;
  return args;
}

attention::AttentionShape MakeShape(const HeadsView& q, const PagedKv& keys,
                                    const AttentionOptions& options) {
  // A window as long as any sequence is none.
  constexpr int64_t kLongest = INT32_MAX;
  const int64_t right = options.causal ? 0 : options.window_right.value_or(options.window ? 0 : -1);
  return {.kv_heads = static_cast<int>(keys.kv_heads),
          .group = static_cast<int>(q.heads / keys.kv_heads),
          .head_dim = static_cast<int>(keys.head_dim),
          .window = static_cast<int>(std::min(options.window.value_or(0), kLongest)),
          .window_right = static_cast<int>(std::min(right, kLongest))};
}

attention::AttentionArgs MakeArgs(const HeadsView& q, const PagedKv& keys, const PagedKv& values,
                                  const attention::AttentionShape& shape,
                                  const attention::PlannedBatch& batch, const AttentionOut& out,
                                  const AttentionOptions& options) {
  attention::AttentionArgs args = PoolArgs(keys, values, shape, batch);
  const auto element = static_cast<int64_t>(SizeOf(q.dtype));
  args.q = static_cast<const uint8_t*>(q.data);
  args.q_dtype = q.dtype;
  args.q_token_stride = q.token_stride * element;
  args.q_head_stride = q.head_stride * element;
  args.scale =
      options.scale.value_or(static_cast<float>(1.0 / std::sqrt(static_cast<double>(q.head_dim))));
  args.soft_cap = options.soft_cap.value_or(0.0f);
  args.sinks = options.sinks.empty() ? nullptr : options.sinks.data();
  args.out = static_cast<uint8_t*>(out.data);
  args.out_token_stride = out.token_stride * element;
  args.out_head_stride = out.head_stride * element;
  args.lse = out.lse;
  args.lse_token_stride = out.lse_token_stride;
  return args;
}

// `partial_states` has room for the plan's partial states.
void RunPlanned(const attention::AttentionArgs& args, const attention::PlannedBatch& batch,
                float* partial_states, core::Lease& lease) {
  const attention::Plan& plan = batch.plan;
  lease.ReserveScratch(attention::AttentionScratchBytes(args.shape, plan));
  // The last queries of a causal prefill see the most keys: theirs first, so that what is left at
  // the end, when a thread may have to wait for another, is small.
  lease.Run(plan.shares, [&](int64_t task, uint8_t* scratch) {
    const int64_t share = plan.shares - 1 - task;
    attention::RunWorkItems(args, plan, batch.ShareBegin(share), batch.ShareBegin(share + 1),
                            partial_states, scratch);
  });
  if (plan.splits == 0) {
    return;
  }
  const int64_t heads = args.shape.kv_heads;
  lease.Run(plan.splits * heads, [&](int64_t i, uint8_t*) {
    const attention::KvSplit& split = batch.out.splits[static_cast<size_t>(i / heads)];
    const int head = static_cast<int>(i % heads);
    if (head < split.whole.head_end - split.whole.head_begin) {
      attention::MergeSplit(args, split, head, partial_states);
    }
  });
}

size_t SlotBytes(const attention::Plan& plan) {
  return static_cast<size_t>(plan.state_floats) * sizeof(float);
}

}  // namespace

struct RIFFLE_LOCAL AttentionPlan::Impl {
  core::Arena memory;
  attention::PlannedBatch batch;
  // What the plan is for.
  attention::AttentionShape shape{};
  int64_t tokens = -1;  // -1: no batch
  int64_t num_pages = 0;
  int64_t page_size = 0;

  void CheckCall(const HeadsView& q, const PagedKv& keys, const AttentionOptions& options) const {
    core::Check(tokens >= 0, Code::kBadShape, "plan is of no batch; call its Make first");
    const auto same = [](const char* name, int64_t value, int64_t planned, Code code) {
      core::Check(value == planned, code, name, " = ", value, " but the plan is for ", planned);
    };
    const attention::AttentionShape call = MakeShape(q, keys, options);
    same("q.tokens", q.tokens, tokens, Code::kBadShape);
    same("q.heads", q.heads, int64_t{shape.kv_heads} * shape.group, Code::kBadShape);
    same("q.head_dim", q.head_dim, shape.head_dim, Code::kBadShape);
    same("keys.kv_heads", keys.kv_heads, shape.kv_heads, Code::kBadShape);
    same("keys.num_pages", keys.num_pages, num_pages, Code::kBadShape);
    same("keys.page_size", keys.page_size, page_size, Code::kBadShape);
    core::Check(call == shape, Code::kBadOption, "causal = ", options.causal,
                ", window = ", call.window, " and window_right = ", call.window_right,
                " (0 and -1: none) but the plan is for ", shape.window, " and ",
                shape.window_right);
  }
};

AttentionPlan::AttentionPlan() = default;
AttentionPlan::AttentionPlan(const HeadsView& q, const PagedKv& keys, const PagedBatch& batch,
                             const AttentionOptions& options) {
  Make(q, keys, batch, options);
}
AttentionPlan::~AttentionPlan() = default;
AttentionPlan::AttentionPlan(AttentionPlan&&) noexcept = default;
AttentionPlan& AttentionPlan::operator=(AttentionPlan&&) noexcept = default;

void AttentionPlan::Make(const HeadsView& q, const PagedKv& keys, const PagedBatch& batch,
                         const AttentionOptions& options) try {
  const core::EntryPoint entry;
  if (impl_ == nullptr) {
    impl_.reset(new (std::nothrow) Impl());
    core::Check(impl_ != nullptr, Code::kOutOfMemory, "no memory for the plan");
  }
  impl_->tokens = -1;
  attention::CheckShapes(q, keys, options);
  attention::CheckBatch(batch, keys, q.tokens, options);
  ThreadPool& pool = options.pool != nullptr ? *options.pool : DefaultPool();
  impl_->shape = MakeShape(q, keys, options);
  const attention::BatchPlanner planner(impl_->shape, keys, batch, q.tokens, options,
                                        pool.threads());
  impl_->batch = planner.Place(impl_->memory.Get(planner.bytes()));
  impl_->num_pages = keys.num_pages;
  impl_->page_size = keys.page_size;
  impl_->tokens = q.tokens;
} catch (...) {
  core::RethrowAsError();
}

void PagedAttention(const HeadsView& q, const PagedKv& keys, const PagedKv& values,
                    const AttentionPlan& plan, const AttentionOut& out,
                    const AttentionOptions& options) try {
  const core::EntryPoint entry;
  attention::CheckShapes(q, keys, options);
  core::Check(plan.impl_ != nullptr, Code::kBadShape, "plan is of no batch; call its Make first");
  const AttentionPlan::Impl& planned = *plan.impl_;
  planned.CheckCall(q, keys, options);
  attention::CheckData(q, keys, values, nullptr, out, options);
  core::EnsureTarget();
  if (q.tokens == 0) {
    return;
  }
  core::Lease lease(options.pool);
  auto* partial_states = reinterpret_cast<float*>(lease.Shared(SlotBytes(planned.batch.plan)));
  RunPlanned(MakeArgs(q, keys, values, planned.shape, planned.batch, out, options), planned.batch,
             partial_states, lease);
} catch (...) {
  core::RethrowAsError();
}

void PagedAttention(const HeadsView& q, const PagedKv& keys, const PagedKv& values,
                    const PagedBatch& batch, const AttentionOut& out,
                    const AttentionOptions& options) try {
  const core::EntryPoint entry;
  attention::CheckShapes(q, keys, options);
  attention::CheckBatch(batch, keys, q.tokens, options);
  attention::CheckData(q, keys, values, &batch, out, options);
  core::EnsureTarget();
  const attention::AttentionShape shape = MakeShape(q, keys, options);
  core::Lease lease(options.pool);
  const attention::BatchPlanner planner(shape, keys, batch, q.tokens, options, lease.threads());
  uint8_t* memory = lease.Shared(planner.bytes() + SlotBytes(planner.plan()));
  const attention::PlannedBatch planned = planner.Place(memory);
  if (q.tokens == 0) {
    return;
  }
  RunPlanned(MakeArgs(q, keys, values, shape, planned, out, options), planned,
             reinterpret_cast<float*>(memory + planner.bytes()), lease);
} catch (...) {
  core::RethrowAsError();
}

uint8_t ReadPages(const PagedKv& keys, const PagedKv& values, const PagedBatch& batch,
                  ThreadPool* pool) try {
  const core::EntryPoint entry;
  attention::CheckPool(keys, values);
  // One query a sequence, on every KV head.
  PagedBatch decode = batch;
  decode.cu_q_lens = {};
  const auto tokens = static_cast<int64_t>(batch.kv_lens.size());
  const AttentionOptions options;
  attention::CheckBatch(decode, keys, tokens, options);
  core::EnsureTarget();
  const attention::AttentionShape shape = {static_cast<int>(keys.kv_heads), 1,
                                           static_cast<int>(keys.head_dim), 0, 0};
  core::Lease lease(pool);
  const attention::BatchPlanner planner(shape, keys, decode, tokens, options, lease.threads());
  const attention::PlannedBatch planned = planner.Place(lease.Shared(planner.bytes()));
  const attention::AttentionArgs args = PoolArgs(keys, values, shape, planned);
  lease.ReserveScratch(64);
  std::atomic<int> largest{0};
  lease.Run(planned.plan.shares, [&](int64_t share, uint8_t*) {
    const int max =
        attention::ReadWorkItems(args, planned.ShareBegin(share), planned.ShareBegin(share + 1));
    for (int seen = largest; max > seen && !largest.compare_exchange_weak(seen, max);) {
    }
  });
  return static_cast<uint8_t>(largest);
} catch (...) {
  core::RethrowAsError();
}

double DotPeak(DType dtype, double seconds, ThreadPool* pool) try {
  const core::EntryPoint entry;
  core::Check(dtype <= DType::kBF16, Code::kBadDType, "unknown dtype ", static_cast<int>(dtype));
  core::Check(seconds > 0 && seconds <= 10, Code::kBadOption, "seconds = ", seconds,
              " is not in 0..10");
  core::EnsureTarget();
  core::Lease lease(pool);
  const int64_t threads = lease.threads();
  std::atomic<int64_t> operations{0};
  const core::Stopwatch watch;
  lease.Run(threads, [&](int64_t, uint8_t*) {
    while (watch.seconds() < seconds) {
      operations += static_cast<int64_t>(attention::SpinDots(dtype, 4096));
    }
  });
  return static_cast<double>(operations.load()) / watch.seconds();
} catch (...) {
  core::RethrowAsError();
}

}  // namespace riffle
