// The page pool: Python's arguments to riffle/kv_cache.h and back.
#include "riffle/kv_cache.h"

#include <algorithm>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "arguments.h"
#include "array.h"
#include "bindings.h"
#include "core/fork.h"
#include "kernel_scope.h"

namespace riffle::python {
namespace {

DType DTypeNamed(nb::handle name) {
  std::string_view text;
  if (!nb::try_cast(name, text)) {
    ThrowTypeError("dtype must be a str, not " + Repr(name));
  }
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    if (text == Name(dtype)) {
      return dtype;
    }
  }
  ThrowTypeError("dtype = " + Repr(name) + " is none of 'float32', 'float16', 'bfloat16'");
}

// A KvCache that Python's threads may share: one call at a time, without the GIL.
class SharedKvCache {
 public:
  explicit SharedKvCache(const KvCacheOptions& options) : cache_(options) {}

  template <typename Call>
  auto Locked(const Call& call) {
    const KernelScope scope;  // first, so that nobody waits for the lock with the GIL
    const std::lock_guard<core::ForkSafeMutex> lock(mutex_);
    return call(cache_);
  }

  // The views of pages, which never change.
  const KvCache& cache() const { return cache_; }

 private:
  core::ForkSafeMutex mutex_;
  KvCache cache_;
};

HeadsView Tokens(const Array& x) {
  const DType dtype = FloatingDType(x);
  CheckAxes(x, 3, "[tokens, kv_heads, head_dim]");
  CheckLastAxisContiguous(x);
  return {x.data(),         dtype,           x.axis(0).size, x.axis(1).size, x.axis(2).size,
          x.axis(0).stride, x.axis(1).stride};
}

void Write(SharedKvCache& self, nb::handle layer_object, nb::handle seq_object,
           nb::handle position_object, nb::handle keys_object, nb::handle values_object) {
  const int64_t layer = Int64(layer_object, "layer");
  const int64_t seq = Int64(seq_object, "seq");
  const int64_t position = Int64(position_object, "position");
  const Array keys(keys_object, "keys");
  const Array values(values_object, "values");
  const HeadsView k = Tokens(keys), v = Tokens(values);
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

// The pages as a read-only NumPy array that keeps `owner`, the cache, alive.
nb::object PagesArray(const PagedKv& kv, nb::handle owner) {
  const size_t shape[] = {static_cast<size_t>(kv.num_pages), static_cast<size_t>(kv.kv_heads),
                          static_cast<size_t>(kv.page_size), static_cast<size_t>(kv.head_dim)};
  const int64_t strides[] = {kv.page_stride, kv.head_stride, kv.token_stride, 1};
  // NumPy has no bfloat16 of its own: the bits come as uint16 and are then called what they are.
  const nb::dlpack::dtype dtype = kv.dtype == DType::kF32   ? nb::dtype<float>()
                                  : kv.dtype == DType::kF16 ? nb::dlpack::dtype{2, 16, 1}
                                                            : nb::dtype<uint16_t>();
  const nb::object array =
      nb::ndarray<nb::numpy, nb::ro>(kv.data, 4, shape, owner, strides, dtype).cast();
  return kv.dtype == DType::kBF16 ? CallMethod(array, known().view, NumPyDType(Element::kBF16))
                                  : array;
}

nb::object Keys(nb::handle self, nb::handle layer) {
  const auto& cache = nb::cast<const SharedKvCache&>(self).cache();
  return PagesArray(cache.Keys(Int64(layer, "layer")), self);
}

nb::object Values(nb::handle self, nb::handle layer) {
  const auto& cache = nb::cast<const SharedKvCache&>(self).cache();
  return PagesArray(cache.Values(Int64(layer, "layer")), self);
}

}  // namespace

void BindKvCache(nb::module_& m) {
  const auto any = nb::arg().none();  // what None means is for the functions to say
  using Self = SharedKvCache;
  nb::class_<Self>(m, "KvCache")
      .def(
          "__init__",
          [](Self* self, nb::handle layers, nb::handle kv_heads, nb::handle head_dim,
             nb::handle pages, nb::handle page_size, nb::handle dtype) {
            const KvCacheOptions options{Int64(layers, "layers"),       Int64(kv_heads, "kv_heads"),
                                         Int64(head_dim, "head_dim"),   Int64(pages, "pages"),
                                         Int64(page_size, "page_size"), DTypeNamed(dtype)};
            new (self) Self(options);
          },
          any, any, any, any, any, any)
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
      .def("values", &Values, any)
      .def("pages_free",
           [](Self& self) { return self.Locked([](KvCache& c) { return c.pages_free(); }); })
      .def("pages_shared",
           [](Self& self) { return self.Locked([](KvCache& c) { return c.pages_shared(); }); })
      .def("pages_used",
           [](Self& self) { return self.Locked([](KvCache& c) { return c.pages_used(); }); })
      .def("sequences",
           [](Self& self) { return self.Locked([](KvCache& c) { return c.sequences(); }); })
      .def("bytes", [](Self& self) { return self.Locked([](KvCache& c) { return c.bytes(); }); });
}

}  // namespace riffle::python
