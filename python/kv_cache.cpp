// The page pool: Python's arguments to riffle/kv_cache.h and back.
#include "riffle/kv_cache.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "arguments.h"
#include "array.h"
#include "bindings.h"
#include "core/fork.h"
#include "kernel_scope.h"
#include "kv_arguments.h"

namespace riffle::python {
namespace {

// How rows are kept: elements of a dtype, or blocks.
struct RowKind {
  DType dtype = DType::kBF16;
  KvFormat format = KvFormat::kPlain;
};

RowKind RowKindNamed(nb::handle name, const char* argument) {
  std::string_view text;
  if (!nb::try_cast(name, text)) {
    ThrowTypeError(std::string(argument) + " must be a str, not " + Repr(name));
  }
  for (const DType dtype :
       {DType::kF32, DType::kF16, DType::kBF16, DType::kE4M3, DType::kE5M2, DType::kI8}) {
    if (text == Name(dtype)) {
      return {dtype};
    }
  }
  for (int i = 1; i < kNumKvFormats; ++i) {
    if (text == Name(static_cast<KvFormat>(i))) {
      return {DType::kBF16, static_cast<KvFormat>(i)};
    }
  }
  ThrowTypeError(std::string(argument) + " = " + Repr(name) +
                 " is none of 'float32', 'float16', 'bfloat16', 'float8_e4m3fn', 'float8_e5m2', "
                 "'int8', 'q8_0', 'q4_0', 'q4_1', 'q5_0', 'q5_1', 'iq4_nl'");
}

DType ScaleDTypeNamed(nb::handle name) {
  std::string_view text;
  if (nb::try_cast(name, text)) {
    for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16, DType::kE8M0}) {
      if (text == Name(dtype)) {
        return dtype;
      }
    }
  }
  ThrowTypeError("scale_dtype = " + Repr(name) +
                 " is none of 'float32', 'float16', 'bfloat16', 'float8_e8m0fnu'");
}

// A KvCache that threads of Python may share: it runs one call at a time, without the GIL.
class SharedKvCache {
 public:
  explicit SharedKvCache(const KvCacheOptions& options) : cache_(options) {}

  template <typename Call>
  auto Locked(const Call& call) {
    const KernelScope scope;  // before the lock: nobody may wait for that with the GIL
    const std::lock_guard<core::ForkSafeMutex> lock(mutex_);
    return call(cache_);
  }

  // For the views of pages only, which never change.
  const KvCache& cache() const { return cache_; }

 private:
  core::ForkSafeMutex mutex_;
  KvCache cache_;
};

void Write(SharedKvCache& self, nb::handle layer_object, nb::handle seq_object,
           nb::handle position_object, nb::handle keys_object, nb::handle values_object) {
  const int64_t layer = Int64(layer_object, "layer");
  const int64_t seq = Int64(seq_object, "seq");
  const int64_t position = Int64(position_object, "position");
  const Array keys(keys_object, "keys");
  const Array values(values_object, "values");
  const HeadsView k = TokensView(keys), v = TokensView(values);
  self.Locked([&](KvCache& cache) { cache.Write(layer, seq, position, k, v); });
}

nb::object Int32Array(const std::vector<int32_t>& values, std::span<const int64_t> shape) {
  const NewArray array = NewNumPyArray(Element::kI32, shape);
  std::copy(values.begin(), values.end(), static_cast<int32_t*>(array.data));
  return array.object;
}

nb::object Batch(SharedKvCache& self, nb::handle seqs_object) {
  std::vector<int64_t> seqs;
  for (const nb::handle seq : Items(seqs_object, "seqs", "ints")) {
    seqs.push_back(Int64(seq, "seqs"));
  }
  const KvBatch batch = self.Locked([&](KvCache& cache) { return cache.Batch(seqs); });
  const int64_t shape[] = {static_cast<int64_t>(seqs.size()), batch.max_pages};
  return nb::make_tuple(Int32Array(batch.kv_lens, std::span(shape).first(1)),
                        Int32Array(batch.page_table, shape));
}

// The memory of a layer as (address, shape, strides in bytes, NumPy's type string), of which the
// package makes a read-only array: nanobind's way there takes the GIL below frames of C++ that a
// thread which the interpreter ends at exit must not unwind. bfloat16 is uint16 here, and float8
// uint8; the caller knows what they mean.
nb::object Memory(const void* data, DType dtype, std::span<const int64_t> shape,
                  std::span<const int64_t> strides) {
  const char* const type = dtype == DType::kF32    ? "<f4"
                           : dtype == DType::kF16  ? "<f2"
                           : dtype == DType::kBF16 ? "<u2"
                           : dtype == DType::kI8   ? "|i1"
                                                   : "|u1";
  nb::list sizes, steps;
  for (size_t i = 0; i < shape.size(); ++i) {
    sizes.append(shape[i]);
    steps.append(strides[i] * static_cast<int64_t>(SizeOf(dtype)));
  }
  return nb::make_tuple(reinterpret_cast<uintptr_t>(data), nb::tuple(sizes), nb::tuple(steps),
                        type);
}

nb::object PagesMemory(const PagedKv& kv) {
  const int64_t row = RowBytes(kv) / static_cast<int64_t>(SizeOf(kv.dtype));
  const int64_t shape[] = {kv.num_pages, kv.kv_heads, kv.page_size, row};
  const int64_t strides[] = {kv.page_stride, kv.head_stride, kv.token_stride, 1};
  return Memory(kv.data, kv.dtype, shape, strides);
}

nb::object ScalesMemory(const PagedKv& kv) {
  const KvScales& scales = kv.scales;
  if (scales.data == nullptr) {
    return nb::none();
  }
  const int64_t groups = scales.group == 0 ? 1 : (kv.head_dim - 1) / scales.group + 1;
  const int64_t shape[] = {kv.num_pages, kv.kv_heads, kv.page_size, groups};
  const int64_t strides[] = {scales.page_stride, scales.head_stride, scales.token_stride, 1};
  const size_t axes = scales.group == 0 ? 3 : 4;
  return Memory(scales.data, scales.dtype, std::span(shape).first(axes),
                std::span(strides).first(axes));
}

// (pages, scales or None) of a layer's keys.
nb::object Keys(const SharedKvCache& self, nb::handle layer) {
  const PagedKv kv = self.cache().Keys(Int64(layer, "layer"));
  return nb::make_tuple(PagesMemory(kv), ScalesMemory(kv));
}

nb::object Values(const SharedKvCache& self, nb::handle layer) {
  const PagedKv kv = self.cache().Values(Int64(layer, "layer"));
  return nb::make_tuple(PagesMemory(kv), ScalesMemory(kv));
}

// Block keys of 16 bytes each.
std::vector<BlockKey> BlockKeys(const nb::bytes& bytes) {
  std::vector<BlockKey> keys(bytes.size() / sizeof(BlockKey));
  std::memcpy(keys.data(), bytes.data(), keys.size() * sizeof(BlockKey));
  return keys;
}

std::span<uint8_t> SwapMemory(const Array& x) {
  CheckElement(x, Element::kU8);
  CheckAxes(x, 1, "1-dimensional");
  CheckLastAxisContiguous(x);
  return {static_cast<uint8_t*>(x.data()), static_cast<size_t>(x.axis(0).size)};
}

nb::dict Stats(SharedKvCache& self) {
  const KvCacheStats stats = self.Locked([](KvCache& cache) { return cache.stats(); });
  nb::dict result;
  result["blocks_wanted"] = stats.blocks_wanted;
  result["blocks_found"] = stats.blocks_found;
  result["pages_evicted"] = stats.pages_evicted;
  result["pages_copied"] = stats.pages_copied;
  result["pages_swapped_out"] = stats.pages_swapped_out;
  result["pages_swapped_in"] = stats.pages_swapped_in;
  result["pages_reusable"] = stats.pages_reusable;
  return result;
}

template <typename Class>
void BindPrefixesAndSwaps(Class& type) {
  using Self = SharedKvCache;
  const auto any = nb::arg().none();
  type.def("create_from",
           [](Self& self, const nb::bytes& bytes) {
             const std::vector<BlockKey> keys = BlockKeys(bytes);
             return self.Locked([&](KvCache& c) { return c.Create(keys); });
           })
      .def("lookup",
           [](Self& self, const nb::bytes& bytes) {
             const std::vector<BlockKey> keys = BlockKeys(bytes);
             return self.Locked([&](KvCache& c) { return c.Lookup(keys); });
           })
      .def(
          "set_block_keys",
          [](Self& self, nb::handle seq, const nb::bytes& bytes) {
            const int64_t id = Int64(seq, "seq");
            const std::vector<BlockKey> keys = BlockKeys(bytes);
            self.Locked([&](KvCache& c) { c.SetBlockKeys(id, keys); });
          },
          any, nb::arg())
      .def(
          "swap_bytes",
          [](Self& self, nb::handle seq) {
            const int64_t id = Int64(seq, "seq");
            return self.Locked([id](KvCache& c) { return c.SwapBytes(id); });
          },
          any)
      .def(
          "swap_out",
          [](Self& self, nb::handle seq, nb::handle object) {
            const int64_t id = Int64(seq, "seq");
            const Array memory(object, "memory", Access::kWrite);
            const std::span<uint8_t> bytes = SwapMemory(memory);
            self.Locked([&](KvCache& c) { c.SwapOut(id, bytes); });
          },
          any, any)
      .def(
          "swap_in",
          [](Self& self, nb::handle seq, nb::handle object) {
            const int64_t id = Int64(seq, "seq");
            const Array memory(object, "memory");
            const std::span<const uint8_t> bytes = SwapMemory(memory);
            self.Locked([&](KvCache& c) { c.SwapIn(id, bytes); });
          },
          any, any);
}

void Initialise(SharedKvCache* self, nb::handle layers, nb::handle kv_heads, nb::handle head_dim,
                nb::handle pages, nb::handle page_size, nb::handle dtype, nb::handle value_dim,
                nb::handle value_dtype, nb::handle scale_dtype, nb::handle scale_group) {
  const RowKind keys = RowKindNamed(dtype, "dtype");
  KvCacheOptions options{Int64(layers, "layers"),
                         Int64(kv_heads, "kv_heads"),
                         Int64(head_dim, "head_dim"),
                         Int64(pages, "pages"),
                         Int64(page_size, "page_size"),
                         keys.dtype,
                         keys.format};
  if (!value_dim.is_none()) {
    options.value_dim = Int64(value_dim, "value_dim");
  }
  if (!value_dtype.is_none()) {
    const RowKind values = RowKindNamed(value_dtype, "value_dtype");
    options.value_dtype = values.dtype;
    options.value_format = values.format;
  }
  options.scale_dtype = ScaleDTypeNamed(scale_dtype);
  options.scale_group = Int64(scale_group, "scale_group");
  new (self) SharedKvCache(options);
}

// What KvCache says of itself.
void BindStatistics(nb::class_<SharedKvCache>& type) {
  using Self = SharedKvCache;
  type.def("pages_free",
           [](Self& self) { return self.Locked([](KvCache& c) { return c.pages_free(); }); })
      .def("pages_shared",
           [](Self& self) { return self.Locked([](KvCache& c) { return c.pages_shared(); }); })
      .def("pages_used",
           [](Self& self) { return self.Locked([](KvCache& c) { return c.pages_used(); }); })
      .def("sequences",
           [](Self& self) { return self.Locked([](KvCache& c) { return c.sequences(); }); })
      .def("bytes", [](Self& self) { return self.Locked([](KvCache& c) { return c.bytes(); }); })
      .def("stats", &Stats);
}

}  // namespace

void BindKvCache(nb::module_& m) {
  const auto any = nb::arg().none();  // the functions below handle None
  using Self = SharedKvCache;
  nb::class_<Self> type(m, "KvCache");
  BindStatistics(type);
  BindPrefixesAndSwaps(type);
  type.def("__init__", &Initialise, any, any, any, any, any, any, any, any, any, any)
      .def("create",
           [](Self& self) { return self.Locked([](KvCache& cache) { return cache.Create(); }); })
      .def(
          "fork",
          [](Self& self, nb::handle seq) {
            const int64_t id = Int64(seq, "seq");
            return self.Locked([id](KvCache& cache) { return cache.Fork(id); });
          },
          any)
      .def(
          "extend",
          [](Self& self, nb::handle seq, nb::handle tokens) {
            const int64_t id = Int64(seq, "seq"), count = Int64(tokens, "tokens");
            self.Locked([=](KvCache& cache) { cache.Extend(id, count); });
          },
          any, any)
      .def("write", &Write, any, any, any, any, any)
      .def(
          "truncate",
          [](Self& self, nb::handle seq, nb::handle length) {
            const int64_t id = Int64(seq, "seq"), keep = Int64(length, "length");
            self.Locked([=](KvCache& cache) { cache.Truncate(id, keep); });
          },
          any, any)
      .def(
          "free",
          [](Self& self, nb::handle seq) {
            const int64_t id = Int64(seq, "seq");
            self.Locked([id](KvCache& cache) { cache.Free(id); });
          },
          any)
      .def(
          "length",
          [](Self& self, nb::handle seq) {
            const int64_t id = Int64(seq, "seq");
            return self.Locked([id](KvCache& cache) { return cache.Length(id); });
          },
          any)
      .def("batch", &Batch, any)
      .def("keys", &Keys, any)
      .def("values", &Values, any);
}

}  // namespace riffle::python
