// What riffle.jax calls inside of XLA programs: custom calls by XLA's foreign function interface,
// as xla_abi.h and xla_call.h have it. So nothing of JAX is needed to build or to load the module.
// riffle/jax.py has checked shapes and dtypes when a call was traced; lengths, ranges and page
// numbers are the library's to check. Operands are read, and results written, where XLA has them.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <exception>
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

namespace riffle::python {
namespace {

void Require(bool condition, const char* what) {
  if (!condition) {
    throw Error(Code::kBadShape, what);
  }
}

DType DTypeOf(ffi::DataType type) {
  switch (type) {
    case ffi::DataType::kF32:
      return DType::kF32;
    case ffi::DataType::kF16:
      return DType::kF16;
    case ffi::DataType::kBF16:
      return DType::kBF16;
    default:
      throw Error(Code::kBadDType, "an operand is none of float32, float16 and bfloat16");
  }
}

// Of top-k's operands; bool counts as uint8.
DType SelectionDTypeOf(ffi::DataType type) {
  switch (type) {
    case ffi::DataType::kF64:
      return DType::kF64;
    case ffi::DataType::kS8:
      return DType::kI8;
    case ffi::DataType::kPred:
    case ffi::DataType::kU8:
      return DType::kU8;
    case ffi::DataType::kS16:
      return DType::kI16;
    case ffi::DataType::kU16:
      return DType::kU16;
    case ffi::DataType::kS32:
      return DType::kI32;
    case ffi::DataType::kU32:
      return DType::kU32;
    case ffi::DataType::kS64:
      return DType::kI64;
    case ffi::DataType::kU64:
      return DType::kU64;
    default:
      return DTypeOf(type);
  }
}

// An operand or result of which vmap may have made a batch: axes before its own. In operands they
// have size 1 where the whole batch shares them (vmap_method="expand_dims").
class Batched {
 public:
  using Dimensions = ffi::AnyBuffer::Dimensions;

  Batched(const ffi::AnyBuffer& buffer, size_t own_axes)
      : buffer_(buffer), dims_(buffer.dimensions()) {
    Require(dims_.size() >= own_axes, "an operand has too few axes");
    leading_ = dims_.size() - own_axes;
    for (size_t i = 0; i < dims_.size(); ++i) {
      (i < leading_ ? items_ : size_) *= dims_[i];
    }
  }

  int64_t axis(size_t i) const { return dims_[leading_ + i]; }
  int64_t items() const { return items_; }
  int64_t size() const { return size_; }  // elements of an item
  ffi::DataType type() const { return buffer_.element_type(); }
  uint8_t* data() const { return static_cast<uint8_t*>(buffer_.untyped_data()); }

  // Item `item` of the batch that `result` has.
  uint8_t* At(int64_t item, const Batched& result) const {
    Require(leading_ == result.leading_, "an operand has another number of batch axes");
    int64_t index = 0;
    int64_t stride = 1;
    for (size_t i = leading_; i-- > 0;) {
      const int64_t size = result.dims_[i];
      Require(dims_[i] == size || dims_[i] == 1, "an operand has another batch");
      index += dims_[i] == 1 ? 0 : item % size * stride;
      stride *= dims_[i];
      item /= size;
    }
    return data() + index * size_ * static_cast<int64_t>(ffi::ByteWidth(type()));
  }

 private:
  ffi::AnyBuffer buffer_;
  Dimensions dims_;
  size_t leading_ = 0;
  int64_t items_ = 1;
  int64_t size_ = 1;
};

// The int32 operand for all items of a batch in one piece: as it stands, or repeated into `copy`.
std::span<const int32_t> Int32s(const Batched& x, const Batched& result,
                                std::vector<int32_t>& copy) {
  Require(x.type() == ffi::DataType::kS32, "an operand is not int32");
  if (x.items() == result.items()) {
    return {reinterpret_cast<const int32_t*>(x.data()), static_cast<size_t>(x.items() * x.size())};
  }
  copy.resize(static_cast<size_t>(result.items() * x.size()));
  for (int64_t item = 0; item < result.items(); ++item) {
    std::memcpy(copy.data() + item * x.size(), x.At(item, result),
                static_cast<size_t>(x.size()) * sizeof(int32_t));
  }
  return copy;
}

std::span<const int32_t> Int32sAt(const Batched& x, int64_t item, const Batched& result) {
  Require(x.type() == ffi::DataType::kS32, "an operand is not int32");
  return {reinterpret_cast<const int32_t*>(x.At(item, result)), static_cast<size_t>(x.size())};
}

// Runs `call`; what it throws is the call's error.
template <typename Call>
ffi::Error Run(const Call& call) {
  try {
    call();
    return ffi::Error::Success();
  } catch (const Error& e) {
    return {e.code() == Code::kOutOfMemory ? ffi::ErrorCode::kResourceExhausted
                                           : ffi::ErrorCode::kInvalidArgument,
            e.what()};
  } catch (const std::exception& e) {
    return {ffi::ErrorCode::kInternal, e.what()};
  }
}

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
    if (x.items() == indices.items()) {  // rows are rows, whichever item they are of
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

// Keys or values [kv_heads, pages, page_size, d], scales [kv_heads, pages, page_size, 1] if int8.
struct Pages {
  Batched pages;
  std::optional<Batched> scales;

  bool shared() const { return pages.items() == 1 && (!scales || scales->items() == 1); }

  PagedKv At(int64_t item, const Batched& result) const {
    const int64_t pool = pages.axis(1), page_size = pages.axis(2), dim = pages.axis(3);
    PagedKv kv{pages.At(item, result),
               DType::kF32,
               pool,
               page_size,
               pages.axis(0),
               dim,
               page_size * dim,
               dim,
               pool * page_size * dim};
    if (!scales) {
      kv.dtype = DTypeOf(pages.type());
      return kv;
    }
    Require(pages.type() == ffi::DataType::kS8 && scales->size() * dim == pages.size(),
            "there is not one scale for each token of int8 pages");
    kv.dtype = DTypeOf(scales->type());
    kv.scales = {scales->At(item, result), page_size, 1, pool * page_size};
    return kv;
  }
};

// What decode and prefill share.
struct Attention {
  Batched q;  // [tokens, q_heads, d]
  Pages keys, values;
  Batched out;  // like q
  AttentionOptions options;

  Attention(const ffi::AnyBuffer& q_buffer, const ffi::AnyBuffer& k, const ffi::AnyBuffer& v,
            const ffi::RemainingArgs& scales, const ffi::AnyBuffer& result, float scale,
            float soft_cap)
      : q(q_buffer, 3), keys{Batched(k, 4), {}}, values{Batched(v, 4), {}}, out(result, 3) {
    if (scales.size() == 2) {
      keys.scales.emplace(scales[0], 4);
      values.scales.emplace(scales[1], 4);
    }
    Require(out.size() == q.size() && out.type() == q.type(), "the result is not like q");
    options.scale = scale;
    if (soft_cap > 0) {
      options.soft_cap = soft_cap;
    }
  }

  // Of `tokens` queries from item `item` on.
  HeadsView Queries(int64_t item, int64_t tokens) const {
    return {q.At(item, out), DTypeOf(q.type()),     tokens,   q.axis(1),
            q.axis(2),       q.axis(1) * q.axis(2), q.axis(2)};
  }
  AttentionOut Results(int64_t item) const {
    return {out.At(item, out), q.axis(1) * q.axis(2), q.axis(2), nullptr, 0};
  }
};

// The library's names of arguments -> those of riffle.jax.
struct Name {
  std::string_view from, to;
  bool single = false;  // one number there, of which an index is no part
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

// q [B, q_heads, d], lengths [B], page_indices [B, max_pages] -> out like q
ffi::Error XlaPagedAttention(ffi::AnyBuffer q_buffer, ffi::AnyBuffer k, ffi::AnyBuffer v,
                             ffi::AnyBuffer lengths_buffer, ffi::AnyBuffer page_indices_buffer,
                             ffi::RemainingArgs scales, ffi::Result result, float scale,
                             float soft_cap) {
  return RunAttention(kDecodeNames, [&] {
    const Attention call(q_buffer, k, v, scales, *result, scale, soft_cap);
    const Batched lengths(lengths_buffer, 1), page_indices(page_indices_buffer, 2);
    const int64_t sequences = call.q.axis(0), max_pages = page_indices.axis(1);
    Require(lengths.axis(0) == sequences && page_indices.axis(0) == sequences,
            "lengths and page_indices are not of q's sequences");
    const int64_t items = call.out.items();
    if (call.keys.shared() && call.values.shared() && call.q.items() == items) {
      std::vector<int32_t> length_copy, page_copy;
      const PagedBatch batch{{},
                             Int32s(lengths, call.out, length_copy),
                             Int32s(page_indices, call.out, page_copy).data(),
                             max_pages,
                             max_pages};
      PagedAttention(call.Queries(0, items * sequences), call.keys.At(0, call.out),
                     call.values.At(0, call.out), batch, call.Results(0), call.options);
      return;
    }
    for (int64_t item = 0; item < items; ++item) {
      const PagedBatch batch{{},
                             Int32sAt(lengths, item, call.out),
                             Int32sAt(page_indices, item, call.out).data(),
                             max_pages,
                             max_pages};
      PagedAttention(call.Queries(item, sequences), call.keys.At(item, call.out),
                     call.values.At(item, call.out), batch, call.Results(item), call.options);
    }
  });
}

// q [chunk, q_heads, d], the last chunk of a sequence cut into chunks from its begin; length [1],
// page_indices [max_pages] -> out like q, zeros in rows behind the length
ffi::Error XlaPrefillAttention(ffi::AnyBuffer q_buffer, ffi::AnyBuffer k, ffi::AnyBuffer v,
                               ffi::AnyBuffer length_buffer, ffi::AnyBuffer page_indices_buffer,
                               ffi::RemainingArgs scales, ffi::Result result, float scale,
                               float soft_cap) {
  return RunAttention(kPrefillNames, [&] {
    const Attention call(q_buffer, k, v, scales, *result, scale, soft_cap);
    const Batched length(length_buffer, 1), page_indices(page_indices_buffer, 1);
    const int64_t chunk = call.q.axis(0), max_pages = page_indices.axis(0);
    Require(length.axis(0) == 1, "length is not one number");
    for (int64_t item = 0; item < call.out.items() && chunk > 0; ++item) {
      const std::span<const int32_t> kv_len = Int32sAt(length, item, call.out);
      const int64_t rest = kv_len[0] % chunk;
      const int64_t rows = kv_len[0] <= 0 ? 0 : rest == 0 ? chunk : rest;
      const int32_t cu_q_lens[] = {0, static_cast<int32_t>(rows)};
      const PagedBatch batch{cu_q_lens, kv_len, Int32sAt(page_indices, item, call.out).data(),
                             max_pages, max_pages};
      PagedAttention(call.Queries(item, rows), call.keys.At(item, call.out),
                     call.values.At(item, call.out), batch, call.Results(item), call.options);
      const int64_t row_bytes =
          call.q.axis(1) * call.q.axis(2) * static_cast<int64_t>(ffi::ByteWidth(call.q.type()));
      std::memset(call.out.At(item, call.out) + rows * row_bytes, 0,
                  static_cast<size_t>((chunk - rows) * row_bytes));
    }
  });
}

constexpr std::string_view kAttentionAttributes[] = {"scale", "soft_cap"};

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
  m.attr("xla_handlers") = handlers;
}

}  // namespace riffle::python
