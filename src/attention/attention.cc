// The doors of attention: validate, plan, run.
#include "riffle/attention.h"
#include "riffle/roofline.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>

#include "attention/attention_check.h"
#include "attention/attention_kernels.h"
#include "core/check.h"
#include "core/entry_point.h"
#include "core/lease.h"
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
                                  const PagedBatch& batch, int group) {
  attention::AttentionArgs args{};
  args.keys = PoolBytes(keys);
  args.values = PoolBytes(values);
  args.kv_dtype = keys.dtype;
  args.kv_int8 = keys.scales.data != nullptr;
  args.page_size = static_cast<int>(keys.page_size);
  args.page_table = batch.page_table;
  args.page_table_stride = batch.page_table_stride;
  args.kv_lens = batch.kv_lens.data();
  args.shape = {static_cast<int>(keys.kv_heads), group, static_cast<int>(keys.head_dim), true, 0};
  return args;
}

attention::AttentionArgs MakeArgs(const HeadsView& q, const PagedKv& keys, const PagedKv& values,
                                  const PagedBatch& batch, const AttentionOut& out,
                                  const AttentionOptions& options) {
  attention::AttentionArgs args =
      PoolArgs(keys, values, batch, static_cast<int>(q.heads / keys.kv_heads));
  const auto element = static_cast<int64_t>(SizeOf(q.dtype));
  args.q = static_cast<const uint8_t*>(q.data);
  args.q_dtype = q.dtype;
  args.q_token_stride = q.token_stride * element;
  args.q_head_stride = q.head_stride * element;
  args.cu_q_lens = batch.cu_q_lens.empty() ? nullptr : batch.cu_q_lens.data();
  args.shape.causal = options.causal;
  // A window as long as any sequence is none, except that it ends at the query.
  constexpr int64_t kLongest = INT32_MAX;
  args.shape.window = static_cast<int>(std::min(options.window.value_or(0), kLongest));
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

// A plan in the lease's shared memory, and the partial_states of split columns behind it.
struct PlannedCall {
  attention::Plan plan;
  attention::PlanOut out;
  float* partial_states = nullptr;

  PlannedCall(const attention::AttentionArgs& args, std::span<const int32_t> kv_lens,
              core::Lease& lease) {
    plan = attention::PlanAttention(args.shape, args.cu_q_lens, kv_lens, lease.threads(), {});
    const auto padded = [](size_t bytes) { return (bytes + 63) / 64 * 64; };
    const auto items = static_cast<size_t>(plan.items);
    const auto splits = static_cast<size_t>(plan.splits);
    const auto shares = static_cast<size_t>(plan.shares);
    const size_t unit_bytes = padded(items * sizeof(attention::WorkItem));
    const size_t split_bytes = padded(splits * sizeof(attention::KvSplit));
    const size_t share_bytes = padded((shares + 1) * sizeof(int64_t));
    uint8_t* at = lease.Shared(unit_bytes + split_bytes + share_bytes +
                               static_cast<size_t>(plan.state_floats) * sizeof(float));
    out.items = {reinterpret_cast<attention::WorkItem*>(at), items};
    out.splits = {reinterpret_cast<attention::KvSplit*>(at + unit_bytes), splits};
    out.share_begin = {reinterpret_cast<int64_t*>(at + unit_bytes + split_bytes), shares + 1};
    partial_states = reinterpret_cast<float*>(at + unit_bytes + split_bytes + share_bytes);
    attention::PlanAttention(args.shape, args.cu_q_lens, kv_lens, lease.threads(), out);
  }

  const attention::WorkItem* ShareBegin(int64_t share) const {
    return out.items.data() + out.share_begin[static_cast<size_t>(share)];
  }
};

}  // namespace

void PagedAttention(const HeadsView& q, const PagedKv& keys, const PagedKv& values,
                    const PagedBatch& batch, const AttentionOut& out,
                    const AttentionOptions& options) try {
  const core::EntryPoint entry;
  attention::CheckAttention(q, keys, values, batch, out, options);
  core::EnsureTarget();
  if (q.tokens == 0) {
    return;
  }
  const attention::AttentionArgs args = MakeArgs(q, keys, values, batch, out, options);
  core::Lease lease(options.pool);
  const PlannedCall call(args, batch.kv_lens, lease);
  lease.ReserveScratch(attention::AttentionScratchBytes(args.shape, call.plan));
  // The last queries of a causal prefill see the most keys: theirs first, so that what is left at
  // the end, when a thread may have to wait for another, is small.
  lease.Run(call.plan.shares, [&](int64_t task, uint8_t* scratch) {
    const int64_t share = call.plan.shares - 1 - task;
    attention::RunWorkItems(args, call.plan, call.ShareBegin(share), call.ShareBegin(share + 1),
                            call.partial_states, scratch);
  });
  if (call.plan.splits == 0) {
    return;
  }
  const int64_t heads = args.shape.kv_heads;
  lease.Run(call.plan.splits * heads, [&](int64_t i, uint8_t*) {
    const attention::KvSplit& split = call.out.splits[static_cast<size_t>(i / heads)];
    const int head = static_cast<int>(i % heads);
    if (head < split.whole.head_end - split.whole.head_begin) {
      attention::MergeSplit(args, split, head, call.partial_states);
    }
  });
} catch (...) {
  core::RethrowAsError();
}

void MergeStates(std::span<const AttentionPart> parts, const AttentionOut& out,
                 ThreadPool* pool) try {
  const core::EntryPoint entry;
  attention::CheckMerge(parts, out);
  core::EnsureTarget();
  const HeadsView& shape = parts.front().out;
  const auto element = static_cast<int64_t>(SizeOf(shape.dtype));
  const size_t n = parts.size();
  const size_t pointer_bytes = n * sizeof(const uint8_t*);
  core::Lease lease(pool);
  lease.ReserveScratch(pointer_bytes + n * sizeof(float));
  lease.Run(shape.tokens, [&](int64_t token, uint8_t* scratch) {
    auto** rows = reinterpret_cast<const uint8_t**>(scratch);
    auto* weights = reinterpret_cast<float*>(scratch + pointer_bytes);
    for (int64_t head = 0; head < shape.heads; ++head) {
      float largest = -INFINITY;
      for (size_t i = 0; i < n; ++i) {
        weights[i] = parts[i].lse[token * parts[i].lse_token_stride + head];
        rows[i] = static_cast<const uint8_t*>(parts[i].out.data) +
                  (token * parts[i].out.token_stride + head * parts[i].out.head_stride) * element;
        largest = weights[i] > largest || std::isnan(weights[i]) ? weights[i] : largest;
      }
      double sum = 0;
      for (size_t i = 0; i < n && largest > -INFINITY; ++i) {
        sum += std::exp(static_cast<double>(weights[i]) - largest);
      }
      for (size_t i = 0; i < n; ++i) {
        // NaN and +inf stay NaN; a part that saw nothing weighs 0.
        weights[i] =
            weights[i] == -INFINITY
                ? 0.0f
                : static_cast<float>(std::exp(weights[i] - static_cast<double>(largest)) / sum);
      }
      attention::WeightedSum(shape.dtype, rows, weights, static_cast<int64_t>(n),
                             static_cast<int>(shape.head_dim),
                             static_cast<uint8_t*>(out.data) +
                                 (token * out.token_stride + head * out.head_stride) * element);
      if (out.lse != nullptr) {
        out.lse[token * out.lse_token_stride + head] =
            sum == 0 ? largest : static_cast<float>(largest + std::log(sum));
      }
    }
  });
} catch (...) {
  core::RethrowAsError();
}

uint8_t ReadPages(const PagedKv& keys, const PagedKv& values, const PagedBatch& batch,
                  ThreadPool* pool) try {
  const core::EntryPoint entry;
  attention::CheckPages(keys, values, batch);
  core::EnsureTarget();
  const attention::AttentionArgs args = PoolArgs(keys, values, batch, 1);
  core::Lease lease(pool);
  const PlannedCall call(args, batch.kv_lens, lease);
  lease.ReserveScratch(64);
  std::atomic<int> largest{0};
  lease.Run(call.plan.shares, [&](int64_t share, uint8_t*) {
    const int max =
        attention::ReadWorkItems(args, call.ShareBegin(share), call.ShareBegin(share + 1));
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
  using Clock = std::chrono::steady_clock;
  core::Lease lease(pool);
  const int64_t threads = lease.threads();
  std::atomic<int64_t> operations{0};
  const auto start = Clock::now();
  const auto elapsed = [&start] {
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  lease.Run(threads, [&](int64_t, uint8_t*) {
    while (elapsed() < seconds) {
      operations += static_cast<int64_t>(attention::SpinDots(dtype, 4096));
    }
  });
  return static_cast<double>(operations.load()) / elapsed();
} catch (...) {
  core::RethrowAsError();
}

}  // namespace riffle
