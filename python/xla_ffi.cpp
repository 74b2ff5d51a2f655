// The custom calls of riffle.jax in XLA programs, by XLA's foreign function interface as in
// xla_abi.h and xla_call.h, so nothing of JAX is needed to build or to load the module.
// riffle/jax.py has checked shapes and dtypes when a call was traced; the library checks lengths,
// ranges and page numbers. Operands are read, and results written, in XLA's memory.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "bindings.h"
#include "riffle/attention.h"
#include "riffle/error.h"
#include "riffle/topk.h"
#include "xla_call.h"
#include "xla_operands.h"
#include "xla_write_kv.h"

namespace riffle::python {
namespace {

// x [..., n] -> values, indices [..., k]
ffi::Error XlaTopK(ffi::AnyBuffer x_buffer, ffi::Result values_buffer, ffi::Result indices_buffer) {
  return Run([&] {
    const Batched x(x_buffer, 1), values(*values_buffer, 1), indices(*indices_buffer, 1);
    const int64_t k = values.axis(0);
    Require(values.items() == x.items() && indices.items() == x.items() && indices.axis(0) == k &&
                indices.type() == ffi::DataType::kS32 && values.type() == x.type(),
            "results are not [..., k] of x's dtype and int32");
    TopK({x.data(), SelectionDTypeOf(x.type()), x.items(), x.axis(0), x.axis(0)}, k,
         {values.data(), k, indices.data(), k});
  });
}

// x [rows, n], starts, ends [rows] -> indices [rows, k]
ffi::Error XlaTopKPerRow(ffi::AnyBuffer x_buffer, ffi::AnyBuffer starts_buffer,
                         ffi::AnyBuffer ends_buffer, ffi::Result result) {
  return Run([&] {
    const Batched x(x_buffer, 2), starts(starts_buffer, 1), ends(ends_buffer, 1);
    const Batched indices(*result, 2);
    const int64_t rows = x.axis(0), n = x.axis(1), k = indices.axis(1);
    Require(starts.axis(0) == rows && ends.axis(0) == rows && indices.axis(0) == rows &&
                indices.type() == ffi::DataType::kS32,
            "starts, ends and the result are not int32 of x's rows");
    const DType dtype = SelectionDTypeOf(x.type());
    auto* const out = reinterpret_cast<int32_t*>(indices.data());
    if (x.items() == indices.items()) {  // no batch axis is broadcast: items are just more rows
      std::vector<int32_t> start_copy, end_copy;
      TopKPerRow({x.data(), dtype, rows * x.items(), n, n}, Int32s(starts, indices, start_copy),
                 Int32s(ends, indices, end_copy), k, {out, k});
      return;
    }
    for (int64_t item = 0; item < indices.items(); ++item) {
      TopKPerRow({x.At(item, indices), dtype, rows, n, n}, Int32sAt(starts, item, indices),
                 Int32sAt(ends, item, indices), k, {out + item * rows * k, k});
    }
  });
}

// Keys or values [kv_heads, pages, page_size, d], and of what is not a floating-point number of 16
// or 32 bits scales that broadcast to [kv_heads, pages, page_size, groups of d], if any.
struct Pages {
  Batched pages;
  std::optional<Batched> scales;
  float divisor = 1.0f;

  bool shared() const { return pages.items() == 1 && (!scales || scales->items() == 1); }

  PagedKv At(int64_t item, const Batched& result) const {
    const int64_t pool = pages.axis(1), page_size = pages.axis(2), dim = pages.axis(3);
    PagedKv kv{pages.At(item, result),
               KvDTypeOf(pages.type()),
               pool,
               page_size,
               pages.axis(0),
               dim,
               page_size * dim,
               dim,
               pool * page_size * dim};
    if (scales) {
      kv.scales = ScalesAt(item, result);
    }
    return kv;
  }

 private:
  KvScales ScalesAt(int64_t item, const Batched& result) const {
    for (size_t axis = 0; axis < 3; ++axis) {
      Require(scales->axis(axis) == 1 || scales->axis(axis) == pages.axis(axis),
              "scales do not broadcast to their pages");
    }
    const int64_t groups = scales->axis(3);
    const auto stride = [&](size_t axis, int64_t of_all) {
      return scales->axis(axis) == 1 ? 0 : of_all;
    };
    KvScales view;
    view.data = scales->At(item, result);
    view.dtype = KvDTypeOf(scales->type());
    view.token_stride = stride(2, groups);
    view.page_stride = stride(1, groups * scales->axis(2));
    view.head_stride = stride(0, groups * scales->axis(2) * scales->axis(1));
    view.divisor = divisor;
    if (groups > 1) {
      view.group = pages.axis(3) / groups;
      view.group_stride = 1;
    }
    return view;
  }
};

// The options of a call. A negative value, or a soft cap of 0, means that it is not set.
struct AttentionAttributes {
  float scale;
  float soft_cap;
  bool causal;
  int64_t window;
  int64_t window_right;
  int64_t scaled;  // bit 0: keys have scales, as the next operand; bit 1: values have
  float divisor;   // for scales
};

// What decode and prefill share.
struct Attention {
  Batched q;  // [tokens, q_heads, d]
  Pages keys, values;
  Batched out;                 // like q
  std::optional<Batched> lse;  // f32 [tokens, q_heads]
  AttentionOptions options;

  Attention(const ffi::AnyBuffer& q_buffer, const ffi::AnyBuffer& k, const ffi::AnyBuffer& v,
            const ffi::RemainingArgs& scales, const ffi::AnyBuffer& result,
            const AttentionAttributes& given)
      : q(q_buffer, 3),
        keys{Batched(k, 4), {}, given.divisor},
        values{Batched(v, 4), {}, given.divisor},
        out(result, 3) {
    size_t next = 0;
    for (Pages* pages : {&keys, &values}) {
      if ((given.scaled & (pages == &keys ? 1 : 2)) != 0) {
        Require(next < scales.size(), "the call lacks scales");
        pages->scales.emplace(scales[next++], 4);
      }
    }
    Require(out.size() == q.size() && out.type() == q.type(), "the result is not like q");
    options.scale = given.scale;
    options.causal = given.causal;
    if (given.soft_cap > 0) options.soft_cap = given.soft_cap;
    if (given.window >= 0) options.window = given.window;
    if (given.window_right >= 0) options.window_right = given.window_right;
  }

  // The view of `tokens` queries from item `item` on.
  HeadsView Queries(int64_t item, int64_t tokens) const {
    return {q.At(item, out), DTypeOf(q.type()),     tokens,   q.axis(1),
            q.axis(2),       q.axis(1) * q.axis(2), q.axis(2)};
  }
  AttentionOut Results(int64_t item) const {
    AttentionOut results{out.At(item, out), q.axis(1) * q.axis(2), q.axis(2), nullptr, 0};
    if (lse) {
      results.lse = reinterpret_cast<float*>(lse->At(item, out));
      results.lse_token_stride = q.axis(1);
    }
    return results;
  }
  void AddLse(const ffi::AnyBuffer& buffer) {
    lse.emplace(buffer, 2);
    Require(lse->type() == ffi::DataType::kF32 && lse->axis(0) == q.axis(0) &&
                lse->axis(1) == q.axis(1) && lse->items() == out.items(),
            "lse is not float32 [tokens, q_heads]");
  }
};

// Maps names of the library's arguments to those of riffle.jax.
struct Name {
  std::string_view from, to;
  bool single = false;  // a single number in riffle.jax, so an index is dropped
};
constexpr Name kDecodeNames[] = {{"page_table", "page_indices"},
                                 {"kv_lens", "lengths"},
                                 {"keys", "k_pages"},
                                 {"values", "v_pages"}};
constexpr Name kPrefillNames[] = {{"page_table", "page_indices"},
                                  {"kv_lens", "length", true},
                                  {"keys", "k_pages"},
                                  {"values", "v_pages"}};

Error Renamed(const Error& e, std::span<const Name> names) {
  for (const auto& [from, to, single] : names) {
    if (e.argument() == from) {
      std::string_view rest = std::string_view(e.what()).substr(from.size());
      if (single && rest.starts_with('[')) {
        rest.remove_prefix(rest.find(']') + 1);
      }
      return {e.code(), std::string(to).append(rest), to.size()};
    }
  }
  return e;
}

template <typename Call>
ffi::Error RunAttention(std::span<const Name> names, const Call& call) {
  return Run([&] {
    try {
      call();
    } catch (const Error& e) {
      throw Renamed(e, names);
    }
  });
}

void Decode(const Attention& call, const Batched& lengths, const Batched& page_indices) {
  const int64_t sequences = call.q.axis(0), max_pages = page_indices.axis(1);
  Require(lengths.axis(0) == sequences && page_indices.axis(0) == sequences,
          "lengths and page_indices are not of q's sequences");
  const int64_t items = call.out.items();
  if (call.keys.shared() && call.values.shared() && call.q.items() == items) {
    std::vector<int64_t> length_copy, page_copy;
    const PagedBatch batch{
        {},
        {AllIndices(lengths, call.out, length_copy), static_cast<size_t>(items * sequences)},
        AllIndices(page_indices, call.out, page_copy),
        max_pages,
        max_pages};
    PagedAttention(call.Queries(0, items * sequences), call.keys.At(0, call.out),
                   call.values.At(0, call.out), batch, call.Results(0), call.options);
    return;
  }
  for (int64_t item = 0; item < items; ++item) {
    const PagedBatch batch{{},
                           {IndicesAt(lengths, item, call.out), static_cast<size_t>(sequences)},
                           IndicesAt(page_indices, item, call.out),
                           max_pages,
                           max_pages};
    PagedAttention(call.Queries(item, sequences), call.keys.At(item, call.out),
                   call.values.At(item, call.out), batch, call.Results(item), call.options);
  }
}

// q [B, q_heads, d], lengths [B], page_indices [B, max_pages] -> out like q and, if the call has a
// second result, lse [B, q_heads]
ffi::Error XlaPagedAttention(ffi::AnyBuffer q, ffi::AnyBuffer k, ffi::AnyBuffer v,
                             ffi::AnyBuffer lengths, ffi::AnyBuffer page_indices,
                             ffi::RemainingArgs scales, ffi::Result result,
                             ffi::RemainingResults lse, float scale, float soft_cap, bool causal,
                             int64_t window, int64_t window_right, int64_t scaled, float divisor) {
  return RunAttention(kDecodeNames, [&] {
    Attention call(q, k, v, scales, *result,
                   {scale, soft_cap, causal, window, window_right, scaled, divisor});
    if (lse.size() > 0) {
      call.AddLse(lse[0]);
    }
    Decode(call, Batched(lengths, 1), Batched(page_indices, 2));
  });
}

// q [chunk, q_heads, d], the last chunk of a sequence that is cut into chunks from its start;
// length [1], page_indices [max_pages] -> out like q, with zeros in rows past the length
ffi::Error XlaPrefillAttention(ffi::AnyBuffer q_buffer, ffi::AnyBuffer k, ffi::AnyBuffer v,
                               ffi::AnyBuffer length_buffer, ffi::AnyBuffer page_indices_buffer,
                               ffi::RemainingArgs scales, ffi::Result result, float scale,
                               float soft_cap, bool causal, int64_t window, int64_t window_right,
                               int64_t scaled, float divisor) {
  return RunAttention(kPrefillNames, [&] {
    const Attention call(q_buffer, k, v, scales, *result,
                         {scale, soft_cap, causal, window, window_right, scaled, divisor});
    const Batched length(length_buffer, 1), page_indices(page_indices_buffer, 1);
    const int64_t chunk = call.q.axis(0), max_pages = page_indices.axis(0);
    Require(length.axis(0) == 1, "length is not one number");
    for (int64_t item = 0; item < call.out.items() && chunk > 0; ++item) {
      const IndexSpan kv_len(IndicesAt(length, item, call.out), 1);
      const int64_t rest = kv_len[0] % chunk;
      const int64_t rows = kv_len[0] <= 0 ? 0 : rest == 0 ? chunk : rest;
      const int32_t cu_q_lens[] = {0, static_cast<int32_t>(rows)};
      const PagedBatch batch{cu_q_lens, kv_len, IndicesAt(page_indices, item, call.out), max_pages,
                             max_pages};
      PagedAttention(call.Queries(item, rows), call.keys.At(item, call.out),
                     call.values.At(item, call.out), batch, call.Results(item), call.options);
      const int64_t row_bytes =
          call.q.axis(1) * call.q.axis(2) * static_cast<int64_t>(ffi::ByteWidth(call.q.type()));
      std::memset(call.out.At(item, call.out) + rows * row_bytes, 0,
                  static_cast<size_t>((chunk - rows) * row_bytes));
    }
  });
}

constexpr std::string_view kAttentionAttributes[] = {"scale",        "soft_cap", "causal", "window",
                                                     "window_right", "scaled",   "divisor"};

}  // namespace

// riffle._core.xla_handlers: the name of each custom call and its handler.
void BindXlaFfi(nanobind::module_& m) {
  const auto capsule = [](xla::Handler* handler) {
    return nanobind::capsule(reinterpret_cast<void*>(handler));
  };
  nanobind::dict handlers;
  handlers["riffle_top_k"] = capsule(ffi::Handler<XlaTopK>);
  handlers["riffle_top_k_per_row"] = capsule(ffi::Handler<XlaTopKPerRow>);
  handlers["riffle_paged_attention"] =
      capsule(ffi::Handler<XlaPagedAttention, kAttentionAttributes>);
  handlers["riffle_prefill_attention"] =
      capsule(ffi::Handler<XlaPrefillAttention, kAttentionAttributes>);
  handlers["riffle_write_kv"] = WriteKvHandler();
  m.attr("xla_handlers") = handlers;
}

}  // namespace riffle::python
