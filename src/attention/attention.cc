// The entry points of attention: validate, plan, run.
#include "riffle/attention.h"
#include "riffle/roofline.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <memory>
#include <new>

#include "attention/attention_batch.h"
#include "attention/attention_check.h"
#include "attention/attention_kernels.h"
#include "core/atomic_max.h"
#include "core/check.h"
#include "core/entry_point.h"
#include "core/lease.h"
#include "core/stopwatch.h"
#include "core/strided.h"
#include "core/targets.h"

namespace riffle {
namespace {

// A PagedKv, or its scales, whose strides count `unit` bytes, with strides in bytes. Saturates,
// since the stride of an axis of one element may be too large to multiply.
template <typename View>
attention::KvBytes Bytes(const View& kv, size_t unit) {
  const auto bytes = static_cast<int64_t>(unit);
  return {static_cast<const uint8_t*>(kv.data), core::SaturatingMul(kv.page_stride, bytes),
          core::SaturatingMul(kv.token_stride, bytes), core::SaturatingMul(kv.head_stride, bytes)};
}

// The scale of a pool that has a divisor but no scales in memory.
constexpr float kUnitScale = 1.0f;

attention::KvPages PoolBytes(const PagedKv& kv) {
  attention::KvPages pages{};
  static_cast<attention::KvBytes&>(pages) = Bytes(kv, SizeOf(kv.dtype));
  pages.code = attention::RowCodeOf(kv.dtype, kv.format);
  pages.dim = static_cast<int>(kv.head_dim);
  pages.row_bytes = static_cast<size_t>(RowBytes(kv));
  pages.elements_per_scale = pages.dim;
  pages.scale_divisor = 1.0f;
  if (attention::IsBlocks(pages.code)) {
    pages.elements_per_scale = attention::kBlockElements;
    pages.scales = pages;
    pages.scale_group_stride = BlockBytes(kv.format);
    pages.scale_dtype = DType::kF16;
    pages.scales_per_row = pages.dim / pages.elements_per_scale;
  } else if (kv.scales.data != nullptr) {
    const size_t unit = SizeOf(kv.scales.dtype);
    pages.elements_per_scale = kv.scales.group == 0 ? pages.dim : static_cast<int>(kv.scales.group);
    pages.scales = Bytes(kv.scales, unit);
    pages.scale_group_stride = kv.scales.group_stride * static_cast<int64_t>(unit);
    pages.scale_dtype = kv.scales.dtype;
    pages.scale_divisor = kv.scales.divisor;
    pages.scales_per_row = pages.dim / pages.elements_per_scale;
  } else if (kv.scales.divisor != 1.0f) {
    pages.scales = {reinterpret_cast<const uint8_t*>(&kUnitScale), 0, 0, 0};
    pages.scale_dtype = DType::kF32;
    pages.scale_divisor = kv.scales.divisor;
    pages.scales_per_row = 1;
  }
  return pages;
}

// Whether every value is a part of its key, as MLA has it: the same rows of the same elements.
bool ValuesInsideKeys(const attention::KvPages& keys, const attention::KvPages& values) {
  const auto offset =
      reinterpret_cast<uintptr_t>(values.data) - reinterpret_cast<uintptr_t>(keys.data);
  const size_t unit =
      keys.row_bytes / static_cast<size_t>(keys.dim / (attention::IsBlocks(keys.code) ? 32 : 1));
  return values.code == keys.code && values.page_stride == keys.page_stride &&
         values.token_stride == keys.token_stride && values.head_stride == keys.head_stride &&
         offset <= keys.row_bytes && values.row_bytes <= keys.row_bytes - offset &&
         offset % unit == 0;
}

attention::AttentionArgs PoolArgs(const PagedKv& keys, const PagedKv& values,
                                  const attention::AttentionShape& shape,
                                  const attention::PlannedBatch& batch) {
  attention::AttentionArgs args{};
  args.keys = PoolBytes(keys);
  args.values = PoolBytes(values);
  args.values_in_keys = ValuesInsideKeys(args.keys, args.values);
  // A page longer than any sequence acts like one of INT32_MAX tokens.
  args.page_size = static_cast<int>(std::min<int64_t>(keys.page_size, INT32_MAX));
  const auto size = static_cast<uint32_t>(args.page_size);
  args.page_shift = std::has_single_bit(size) ? std::countr_zero(size) : -1;
  args.page_numbers = batch.page_numbers.data();
  args.page_begin = batch.page_begin.data();
  args.kv_lens = batch.kv_lens.data();
  args.cu_q_lens = batch.cu_q_lens.empty() ? nullptr : batch.cu_q_lens.data();
  args.causal = batch.causal.empty() ? nullptr : batch.causal.data();
  args.shape = shape;
  return args;
}

attention::AttentionShape MakeShape(const HeadsView& q, const PagedKv& keys,
                                    const AttentionOptions& options) {
  // A window as long as any sequence hides nothing.
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
  args.bf16_products = options.bf16_products;
  args.q_token_stride = core::SaturatingMul(q.token_stride, element);
  args.q_head_stride = core::SaturatingMul(q.head_stride, element);
  args.scale =
      options.scale.value_or(static_cast<float>(1.0 / std::sqrt(static_cast<double>(q.head_dim))));
  args.soft_cap = options.soft_cap.value_or(0.0f);
  args.sinks = options.sinks.empty() ? nullptr : options.sinks.data();
  args.mask = batch.mask;
  args.slopes = options.alibi_slopes.empty() ? nullptr : options.alibi_slopes.data();
  args.out = static_cast<uint8_t*>(out.data);
  args.out_token_stride = core::SaturatingMul(out.token_stride, element);
  args.out_head_stride = core::SaturatingMul(out.head_stride, element);
  args.lse = out.lse;
  args.lse_token_stride = out.lse_token_stride;
  return args;
}

// `partial_states` has room for the plan's partial states (StateBytes).
void RunPlanned(const attention::AttentionArgs& args, const attention::PlannedBatch& batch,
                float* partial_states, core::Lease& lease) {
  const attention::Plan& plan = batch.plan;
  const attention::AttentionKernels& kernels = attention::GetAttentionKernels();
  const attention::RunItemsKernel run_items = attention::ChooseRunItems(args);
  lease.ReserveScratch(kernels.scratch_bytes(args, plan));
  // The last queries of a causal prefill see the most keys. Run their chunks first, so that those
  // left at the end, when threads wait for each other, are small.
  lease.Run(plan.chunks, [&](int64_t task, uint8_t* scratch) {
    const int64_t chunk = plan.chunks - 1 - task;
    run_items(args, plan, batch.ChunkBegin(chunk), batch.ChunkBegin(chunk + 1), partial_states,
              scratch);
  });
  if (plan.divided_items == 0) {
    return;
  }
  const int64_t heads = args.shape.kv_heads;
  lease.Run(plan.divided_items * heads, [&](int64_t i, uint8_t*) {
    const attention::DividedItem& divided = batch.out.divided_items[static_cast<size_t>(i / heads)];
    const int head = static_cast<int>(i % heads);
    if (head < divided.whole.head_end - divided.whole.head_begin) {
      kernels.merge_divided_item(args, divided, head, partial_states);
    }
  });
}

size_t StateBytes(const attention::Plan& plan, const PagedKv& values) {
  const int columns = attention::PaddedDim(static_cast<int>(values.head_dim));
  return static_cast<size_t>(attention::PartialStateFloats(plan.state_rows, columns)) *
         sizeof(float);
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
    core::Check(tokens >= 0, Code::kBadShape, "plan has no batch; call its Make first");
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
    core::Check(options.mask.data == batch.mask.data, Code::kBadOption,
                batch.mask.data == nullptr ? "there is a mask but the plan is for none"
                                           : "the mask is not the one that the plan is for");
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
  core::Lease lease(options.pool);
  const attention::BatchPlanner planner(impl_->shape, keys, batch, q.tokens, options,
                                        pool.threads());
  impl_->batch = planner.Place(impl_->memory.Get(planner.bytes()), lease);
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
  core::Check(plan.impl_ != nullptr, Code::kBadShape, "plan has no batch; call its Make first");
  const AttentionPlan::Impl& planned = *plan.impl_;
  planned.CheckCall(q, keys, options);
  attention::CheckData(q, keys, values, nullptr, out, options);
  core::EnsureTarget();
  if (q.tokens == 0) {
    return;
  }
  core::Lease lease(options.pool);
  auto* partial_states =
      reinterpret_cast<float*>(lease.Shared(StateBytes(planned.batch.plan, values)));
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
  uint8_t* memory = lease.Shared(planner.bytes() + StateBytes(planner.plan(), values));
  const attention::PlannedBatch planned = planner.Place(memory, lease);
  if (q.tokens == 0) {
    return;
  }
  RunPlanned(MakeArgs(q, keys, values, shape, planned, out, options), planned,
             reinterpret_cast<float*>(memory + planner.bytes()), lease);
} catch (...) {
  core::RethrowAsError();
}

uint8_t ReadPages(const PagedKv& keys, const PagedKv& values, const PagedBatch& batch,
                  const CallOptions& options) try {
  const core::EntryPoint entry;
  attention::CheckPool(keys, values);
  // One query a sequence, on every KV head.
  PagedBatch decode = batch;
  decode.cu_q_lens = {};
  const auto tokens = static_cast<int64_t>(batch.kv_lens.size());
  const AttentionOptions defaults;
  attention::CheckBatch(decode, keys, tokens, defaults);
  core::EnsureTarget();
  const attention::AttentionShape shape = {static_cast<int>(keys.kv_heads), 1,
                                           static_cast<int>(keys.head_dim), 0, 0};
  core::Lease lease(options.pool);
  const attention::BatchPlanner planner(shape, keys, decode, tokens, defaults, lease.threads());
  const attention::PlannedBatch planned = planner.Place(lease.Shared(planner.bytes()), lease);
  const attention::AttentionArgs args = PoolArgs(keys, values, shape, planned);
  lease.ReserveScratch(64);
  const attention::AttentionKernels& kernels = attention::GetAttentionKernels();
  std::atomic<int> largest{0};
  lease.Run(planned.plan.chunks, [&](int64_t chunk, uint8_t*) {
    core::AtomicMax<int>(largest, kernels.read_items(args, planned.ChunkBegin(chunk),
                                                     planned.ChunkBegin(chunk + 1)));
  });
  return static_cast<uint8_t>(largest);
} catch (...) {
  core::RethrowAsError();
}

double DotPeak(DType dtype, double seconds, const CallOptions& options) try {
  const core::EntryPoint entry;
  core::Check(dtype <= DType::kBF16, Code::kBadDType, "unknown dtype ", static_cast<int>(dtype));
  core::Check(seconds > 0 && seconds <= 10, Code::kBadOption, "seconds = ", seconds,
              " is not in 0..10");
  core::EnsureTarget();
  const attention::AttentionKernels& kernels = attention::GetAttentionKernels();
  core::Lease lease(options.pool);
  const int64_t threads = lease.threads();
  std::atomic<int64_t> operations{0};
  const core::Stopwatch watch;
  lease.Run(threads, [&](int64_t, uint8_t*) {
    while (watch.seconds() < seconds) {
      operations += static_cast<int64_t>(kernels.run_dots(dtype, 4096));
    }
  });
  return static_cast<double>(operations.load()) / watch.seconds();
} catch (...) {
  core::RethrowAsError();
}

}  // namespace riffle
