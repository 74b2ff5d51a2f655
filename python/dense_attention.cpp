// scaled_dot_product_attention: attention over dense tensors [batch, heads, tokens, head_dim]. Each
// sequence's keys and values are treated as one page. Nothing is copied.
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>
#include <vector>

#include "arguments.h"
#include "array.h"
#include "bindings.h"
#include "kernel_scope.h"
#include "riffle/attention.h"

namespace riffle::python {
namespace {

enum { kBatch, kHead, kToken, kOuterAxes };

// Queries, keys, values or results as [batch, heads, tokens, dim]; axes that the array lacks have
// size 1. Strides are in elements.
struct Dense {
  uint8_t* data;
  DType dtype;
  int64_t size[kOuterAxes];
  int64_t stride[kOuterAxes];
  int64_t dim;
};

// A mask [batch, heads, queries, keys]; axes that are broadcast have stride 0.
struct DenseMask {
  const uint8_t* data = nullptr;  // null: no mask
  DType dtype = DType::kF32;
  int64_t stride[kOuterAxes] = {};
  int64_t key_stride = 0;
};

struct Problem {
  Dense q, k, v, out;
  DenseMask mask;
  bool causal;  // query i sees keys 0..i
  std::optional<float> scale;
};

// nullopt if PagedAttention cannot read the array in place.
std::optional<Dense> DenseOf(const Array& x) {
  if (x.ndim() < 2 || x.ndim() > 4 || x.element() > Element::kBF16 || x.axis(-1).size % 8 != 0 ||
      x.axis(-1).size == 0 || x.axis(-1).size > 1024 || (x.axis(-1).stride != 1 && !x.empty())) {
    return std::nullopt;
  }
  Dense dense{
      static_cast<uint8_t*>(x.data()), FloatingDType(x), {1, 1, 1}, {0, 0, 0}, x.axis(-1).size};
  for (int i = 0; i + 1 < x.ndim(); ++i) {
    const int axis = i + 4 - x.ndim();
    dense.size[axis] = x.axis(i).size;
    dense.stride[axis] = x.axis(i).stride;
  }
  return dense;
}

// Broadcasts an axis of size 1 to `size`. Returns whether the axis has that size then.
bool Broadcast(Dense* x, int axis, int64_t size) {
  if (x->size[axis] == 1 && size != 1) {
    x->size[axis] = size;
    x->stride[axis] = 0;
  }
  return x->size[axis] == size;
}

std::optional<DenseMask> MaskOf(const Array& x, const Problem& problem) {
  if (x.ndim() < 1 || x.ndim() > 4 ||
      (x.element() > Element::kBF16 && x.element() != Element::kBool)) {
    return std::nullopt;
  }
  DenseMask mask;
  // A null pointer would mean no mask, but an array without elements may have a null address.
  static const uint8_t kNoElement = 0;
  mask.data = x.data() != nullptr ? static_cast<const uint8_t*>(x.data()) : &kNoElement;
  mask.dtype = MaskDType(x);
  const int64_t sizes[] = {problem.q.size[kBatch], problem.q.size[kHead], problem.q.size[kToken],
                           problem.k.size[kToken]};
  for (int i = 0; i < x.ndim(); ++i) {
    const int axis = i + 4 - x.ndim();
    if (x.axis(i).size != sizes[axis] && x.axis(i).size != 1) {
      return std::nullopt;
    }
    (axis < kOuterAxes ? mask.stride[axis] : mask.key_stride) =
        x.axis(i).size == 1 ? 0 : x.axis(i).stride;
  }
  return mask;
}

// Broadcasts batch and heads to each other; returns whether the shapes fit. Several query heads may
// share a KV head only if `grouped`.
bool MatchShapes(Problem* problem, bool grouped) {
  Dense &q = problem->q, &k = problem->k, &v = problem->v;
  const auto [low, batch] = std::minmax({q.size[kBatch], k.size[kBatch], v.size[kBatch]});
  if (q.dtype != k.dtype || q.dtype != v.dtype || q.dim != k.dim ||
      k.size[kToken] != v.size[kToken]) {
    return false;
  }
  for (Dense* x : {&q, &k, &v}) {
    if (!Broadcast(x, kBatch, low == 0 ? 0 : batch)) {
      return false;
    }
  }
  if (grouped) {
    return k.size[kHead] == v.size[kHead] && k.size[kHead] > 0 &&
           q.size[kHead] % k.size[kHead] == 0;
  }
  const int64_t kv_heads = std::max(k.size[kHead], v.size[kHead]);
  return Broadcast(&k, kHead, kv_heads) && Broadcast(&v, kHead, kv_heads) &&
         (kv_heads == 1 || Broadcast(&q, kHead, kv_heads));
}

// The stride of two axes merged into one, the first outermost; nullopt if they do not merge.
std::optional<int64_t> Merged(int64_t outer_size, int64_t outer_stride, int64_t inner_size,
                              int64_t inner_stride) {
  if (outer_size == 1) return inner_stride;
  if (inner_size == 1) return outer_stride;
  if (outer_stride == inner_size * inner_stride) return inner_stride;
  return std::nullopt;
}

std::optional<int64_t> BatchWith(int axis, const Dense& x) {
  return Merged(x.size[kBatch], x.stride[kBatch], x.size[axis], x.stride[axis]);
}

// The same for the mask of queries `q`.
std::optional<int64_t> BatchWith(int axis, const DenseMask& mask, const Dense& q) {
  if (mask.stride[kBatch] == 0 && mask.stride[axis] == 0) return 0;
  return Merged(q.size[kBatch], mask.stride[kBatch], q.size[axis], mask.stride[axis]);
}

bool TokensMerge(const Problem& p) {
  return BatchWith(kToken, p.q) && BatchWith(kToken, p.out) && BatchWith(kToken, p.mask, p.q);
}

bool HeadsMerge(const Problem& p) {
  return BatchWith(kHead, p.q) && BatchWith(kHead, p.out) && BatchWith(kHead, p.k) &&
         BatchWith(kHead, p.v) && BatchWith(kHead, p.mask, p.q);
}

// The problem as one sequence, with the heads of all sequences.
Problem WithMergedHeads(const Problem& p) {
  Problem merged = p;
  merged.mask.stride[kHead] = *BatchWith(kHead, p.mask, p.q);
  merged.mask.stride[kBatch] = 0;
  for (Dense* x : {&merged.q, &merged.k, &merged.v, &merged.out}) {
    x->stride[kHead] = *BatchWith(kHead, *x);
    x->size[kHead] *= x->size[kBatch];
    x->size[kBatch] = 1;
  }
  return merged;
}

Problem OfSequence(const Problem& p, int64_t b) {
  Problem one = p;
  for (Dense* x : {&one.q, &one.k, &one.v, &one.out}) {
    x->data += b * x->stride[kBatch] * static_cast<int64_t>(SizeOf(x->dtype));
    x->size[kBatch] = 1;
  }
  if (p.mask.data != nullptr) {
    one.mask.data += b * p.mask.stride[kBatch] * static_cast<int64_t>(SizeOf(p.mask.dtype));
    one.mask.stride[kBatch] = 0;
  }
  return one;
}

PagedKv PageOfEachSequence(const Dense& x) {
  PagedKv pages;
  pages.data = x.data;
  pages.dtype = x.dtype;
  pages.num_pages = x.size[kBatch];
  pages.page_size = x.size[kToken];
  pages.kv_heads = x.size[kHead];
  pages.head_dim = x.dim;
  pages.page_stride = x.stride[kBatch];
  pages.token_stride = x.stride[kToken];
  pages.head_stride = x.stride[kHead];
  return pages;
}

// Lengths and page tables. With causal, queries past the last key see all keys: they become
// sequences of their own over the same pages.
struct Batch {
  std::vector<int32_t> kv_lens, pages, cu_q_lens;
  std::vector<uint8_t> causal;
  PagedBatch view;

  explicit Batch(const Problem& p) {
    const auto queries = p.q.size[kToken], keys = p.k.size[kToken];
    const auto add = [&](int64_t page, int64_t q_len, int64_t kv_len, bool is_causal) {
      kv_lens.push_back(static_cast<int32_t>(kv_len));
      pages.push_back(static_cast<int32_t>(page));
      cu_q_lens.push_back(cu_q_lens.back() + static_cast<int32_t>(q_len));
      causal.push_back(is_causal ? 1 : 0);
    };
    cu_q_lens.push_back(0);
    for (int64_t b = 0; b < p.q.size[kBatch]; ++b) {
      if (p.causal) {
        add(b, std::min(queries, keys), std::min(queries, keys), true);
      }
      if (!p.causal || queries > keys) {
        add(b, p.causal ? queries - keys : queries, keys, false);
      }
    }
    view.kv_lens = std::span<const int32_t>(kv_lens);
    view.cu_q_lens = std::span<const int32_t>(cu_q_lens);
    view.page_table = pages.data();
    view.max_pages = 1;
    view.page_table_stride = 1;
    view.causal = causal;
  }
};

// Pre: TokensMerge(p).
void RunMerged(const Problem& p) {
  const int64_t tokens = p.q.size[kBatch] * p.q.size[kToken];
  const HeadsView q = {p.q.data,         p.q.dtype, tokens,
                       p.q.size[kHead],  p.q.dim,   *BatchWith(kToken, p.q),
                       p.q.stride[kHead]};
  const AttentionOut out = {p.out.data, *BatchWith(kToken, p.out), p.out.stride[kHead], nullptr, 0};
  AttentionOptions options;
  options.causal = false;
  options.scale = p.scale;
  if (p.mask.data != nullptr) {
    AttentionMask& mask = options.mask;
    mask.data = p.mask.data;
    mask.dtype = p.mask.dtype;
    mask.token_stride = *BatchWith(kToken, p.mask, p.q);
    mask.tokens = mask.token_stride == 0 ? 1 : tokens;
    mask.head_stride = p.mask.stride[kHead];
    mask.heads = mask.head_stride == 0 ? 1 : p.q.size[kHead];
    mask.keys = p.k.size[kToken];
    mask.key_stride = p.mask.key_stride;
  }
  const Batch batch(p);
  PagedAttention(q, PageOfEachSequence(p.k), PageOfEachSequence(p.v), batch.view, out, options);
}

// A call of its own for each sequence costs 12 us. Copying so many bytes of its mask costs less,
// and so does reading so many rows where one served all of them.
constexpr int64_t kMaxCopiedMaskBytes = 32 << 10;
constexpr int64_t kMaxRepeatedRows = 256;

// A problem of which nothing but its mask prevents a single call, with a mask, in `memory`, that
// does not. nullopt for all others, and for masks of more bytes than are worth a copy.
std::optional<Problem> WithCopiedMask(const Problem& p, std::vector<uint8_t>* memory) {
  const bool tokens_merge = BatchWith(kToken, p.q) && BatchWith(kToken, p.out);
  const bool heads_merge = BatchWith(kHead, p.q) && BatchWith(kHead, p.out) &&
                           BatchWith(kHead, p.k) && BatchWith(kHead, p.v);
  if (p.mask.data == nullptr || (!tokens_merge && !heads_merge)) {
    return std::nullopt;
  }
  // The axis that merges with the batch, and the other one, which stays inside of it.
  const int outer = tokens_merge ? kToken : kHead, inner = tokens_merge ? kHead : kToken;
  const auto element = static_cast<int64_t>(SizeOf(p.mask.dtype));
  const int64_t keys = p.k.size[kToken];
  const int64_t inner_size = p.mask.stride[inner] == 0 ? 1 : p.q.size[inner];
  const int64_t rows = p.q.size[outer] * inner_size;
  if (rows > kMaxCopiedMaskBytes / (keys * element) ||
      (p.mask.stride[outer] == 0 && rows > kMaxRepeatedRows)) {
    return std::nullopt;
  }
  memory->resize(static_cast<size_t>(p.q.size[kBatch] * rows * keys * element));
  uint8_t* to = memory->data();
  for (int64_t row = 0; row < p.q.size[kBatch] * rows; ++row) {
    const uint8_t* from = p.mask.data + element * (row / rows * p.mask.stride[kBatch] +
                                                   row % rows / inner_size * p.mask.stride[outer] +
                                                   row % inner_size * p.mask.stride[inner]);
    const bool whole = p.mask.key_stride == 1;
    const int64_t bytes = whole ? keys * element : element;
    for (int64_t key = 0; key < (whole ? 1 : keys); ++key, to += bytes) {
      std::memcpy(to, from + key * p.mask.key_stride * element, static_cast<size_t>(bytes));
    }
  }
  Problem copied = p;
  copied.mask.data = memory->data();
  copied.mask.key_stride = 1;
  copied.mask.stride[inner] = inner_size == 1 ? 0 : keys;
  copied.mask.stride[outer] = inner_size * keys;
  copied.mask.stride[kBatch] = rows * keys;
  return copied;
}

void Run(const Problem& p) {
  std::vector<uint8_t> mask;
  if (TokensMerge(p)) {
    RunMerged(p);
  } else if (HeadsMerge(p)) {
    RunMerged(WithMergedHeads(p));
  } else if (const std::optional<Problem> copied = WithCopiedMask(p, &mask)) {
    Run(*copied);
  } else {
    for (int64_t b = 0; b < p.q.size[kBatch]; ++b) {
      RunMerged(OfSequence(p, b));
    }
  }
}

// Results of so many bytes are in memory that malloc has just mapped: glibc keeps none of 32 MiB
// and more. Half the time of a call with few keys went into its page faults, 4 KiB each.
constexpr int64_t kMinHugePageBytes = 32 << 20;

// Asks for huge pages where new results are written to. Nothing depends on the answer.
void PreferHugePages([[maybe_unused]] const Dense& results) {
#ifdef MADV_HUGEPAGE
  const int64_t bytes = results.size[kBatch] * results.size[kHead] * results.size[kToken] *
                        results.dim * static_cast<int64_t>(SizeOf(results.dtype));
  if (bytes >= kMinHugePageBytes) {
    constexpr uintptr_t kHugePage = 2 << 20;
    const auto begin = reinterpret_cast<uintptr_t>(results.data);
    const uintptr_t first = (begin + kHugePage - 1) / kHugePage * kHugePage;
    const uintptr_t last = (begin + static_cast<uintptr_t>(bytes)) / kHugePage * kHugePage;
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  }
#endif
}

// A tensor of `ndim` axes for the results. As with torch's function, its memory has heads and
// tokens in the order of the queries' memory. Sets `view` to it.
nb::object NewResults(const Array& q, int ndim, const Problem& p, Dense* view) {
  const bool token_major = p.q.size[kHead] > 1 && p.q.size[kToken] > 1 &&
                           p.q.stride[kHead] < p.q.stride[kToken] && p.q.stride[kHead] != 0;
  const int64_t heads = p.q.size[kHead], tokens = p.q.size[kToken];
  int64_t shape[] = {p.q.size[kBatch], heads, tokens, p.v.dim};
  if (token_major) {
    std::swap(shape[kHead], shape[kToken]);
  }
  NewArray made = NewArrayLike(q, q.element(), std::span(shape).last(static_cast<size_t>(ndim)));
  *view = {static_cast<uint8_t*>(made.data),
           p.q.dtype,
           {shape[0], heads, tokens},
           {heads * tokens * p.v.dim, (token_major ? 1 : tokens) * p.v.dim,
            (token_major ? heads : 1) * p.v.dim},
           p.v.dim};
  PreferHugePages(*view);
  if (!token_major) {
    return std::move(made.object);
  }
  static const nb::str kTranspose = Known::Intern("transpose");
  nb::object transpose = Get(made.object, kTranspose);
  const nb::object axes[] = {nb::int_(-3), nb::int_(-2)};
  PyObject* const arguments[] = {axes[0].ptr(), axes[1].ptr()};
  return Call(transpose, arguments);
}

// The result of torch's function; None for calls that this file does not support: see DenseOf,
// MaskOf and MatchShapes.
nb::object PyTorchAttention(nb::handle query, nb::handle key, nb::handle value,
                            nb::handle attn_mask, nb::handle is_causal, nb::handle scale,
                            nb::handle enable_gqa) {
  const Array q(query, "query"), k(key, "key"), v(value, "value");
  const std::optional<Dense> dense_q = DenseOf(q), dense_k = DenseOf(k), dense_v = DenseOf(v);
  if (!dense_q || !dense_k || !dense_v) {
    return nb::none();
  }
  Problem problem{*dense_q, *dense_k, *dense_v, {}, {}, Bool(is_causal, "is_causal"), {}};
  if (!MatchShapes(&problem, Bool(enable_gqa, "enable_gqa")) ||
      (problem.causal && !attn_mask.is_none())) {
    return nb::none();
  }
  std::optional<Array> mask;
  if (!attn_mask.is_none()) {
    const std::optional<DenseMask> dense = MaskOf(mask.emplace(attn_mask, "attn_mask"), problem);
    if (!dense) {
      return nb::none();
    }
    problem.mask = *dense;
  }
  if (!scale.is_none()) {
    problem.scale = static_cast<float>(Double(scale, "scale", "a number or None"));
  }
  constexpr int64_t kMax = std::numeric_limits<int32_t>::max();
  if (problem.k.size[kToken] > kMax || problem.q.size[kToken] > kMax ||
      problem.q.size[kBatch] * problem.q.size[kToken] > kMax) {
    ThrowValueError("query has shape " + q.Shape() + " and key " + k.Shape() + "; at most " +
                    std::to_string(kMax) + " queries and keys are possible");
  }
  const int ndim = std::max({q.ndim(), k.ndim(), v.ndim()});
  nb::object result = NewResults(q, ndim, problem, &problem.out);
  const Dense& out = problem.out;
  const int64_t elements = out.size[kBatch] * out.size[kHead] * out.size[kToken] * out.dim;
  if (elements != 0) {
    const KernelScope scope;
    if (problem.k.size[kToken] == 0) {
      std::memset(out.data, 0, static_cast<size_t>(elements) * SizeOf(out.dtype));
    } else {
      Run(problem);
    }
  }
  return result;
}

}  // namespace

void BindDenseAttention(nb::module_& m) {
  const auto any = nb::arg().none();
  m.def("torch_scaled_dot_product_attention", &PyTorchAttention, any, any, any, any, any, any, any);
}

}  // namespace riffle::python
