#include "attention_node.h"

#include <bit>
#include <cstring>

namespace riffle::llama {
namespace {

using ggml::Tensor;

constexpr int64_t kF32Bytes = sizeof(float);
constexpr int64_t kMaskBytes = sizeof(uint16_t);

const Tensor* Root(const Tensor* tensor) {
  return tensor != nullptr && tensor->view_src != nullptr ? tensor->view_src : tensor;
}

int64_t Stride(const Tensor& tensor, int axis) { return static_cast<int64_t>(tensor.nb[axis]); }

// Keys or values as pages. False: a type, a size or strides that PagedAttention does not have.
bool ReadCache(const Host& host, const Tensor& tensor, PagedKv& kv) {
  const std::optional<RowFormat> format = host.Format(tensor.type);
  if (!format) {
    return false;
  }
  const bool plain = format->format == KvFormat::kPlain;
  const int64_t multiple = plain ? 8 : 32;
  const int64_t unit = plain ? static_cast<int64_t>(SizeOf(format->dtype)) : 1;
  const int64_t first = plain ? unit : BlockBytes(format->format);
  if (tensor.ne[0] % multiple != 0 || tensor.ne[0] < 8 || tensor.ne[0] > 1024 || tensor.ne[1] < 1 ||
      Stride(tensor, 0) != first) {
    return false;
  }
  for (int axis = 1; axis < 4; ++axis) {
    if (Stride(tensor, axis) % unit != 0) {
      return false;
    }
  }
  kv.data = tensor.data;
  kv.dtype = format->dtype;
  kv.format = format->format;
  kv.num_pages = tensor.ne[3];
  kv.page_size = tensor.ne[1];
  kv.kv_heads = tensor.ne[2];
  kv.head_dim = tensor.ne[0];
  kv.page_stride = Stride(tensor, 3) / unit;
  kv.token_stride = Stride(tensor, 1) / unit;
  kv.head_stride = Stride(tensor, 2) / unit;
  return true;
}

// Joins the tokens of all streams into one axis. False: they have no common stride.
bool ReadTokens(const Tensor& tensor, int token_axis, int64_t tokens, int64_t& stride) {
  const int64_t token = Stride(tensor, token_axis);
  const int64_t stream = Stride(tensor, 3);
  stride = tokens == 1 ? stream : token;
  return (tokens == 1 || tensor.ne[3] == 1 || stream == tokens * token);
}

}  // namespace

std::optional<AttentionNode> ReadAttention(const Host& host, const Tensor& node,
                                           std::string& reason) {
  const auto decline = [&](const char* why) {
    reason = why;
    return std::nullopt;
  };
  const Tensor *q = node.src[0], *k = node.src[1], *v = node.src[2], *mask = node.src[3];
  const Tensor* sinks = node.src[4];
  float params[3];  // scale, max_bias, soft cap
  std::memcpy(params, node.op_params, sizeof(params));
  AttentionNode result;
  if (params[1] != 0.0f) {
    return decline("ALiBi");
  }
  const auto is_f32 = [&](const Tensor* tensor) {
    return host.Format(tensor->type) && host.Format(tensor->type)->dtype == DType::kF32 &&
           Stride(*tensor, 0) == kF32Bytes;
  };
  if (!is_f32(q) || !is_f32(&node) || (sinks != nullptr && !is_f32(sinks))) {
    return decline("the type of q, sinks or the result");
  }
  if (!ReadCache(host, *k, result.keys) || !ReadCache(host, *v, result.values)) {
    return decline("type, head_dim or strides of K or V");
  }
  result.streams = q->ne[3];
  result.tokens = q->ne[1];
  result.shared_cells = k->ne[3] == 1 && q->ne[3] > 1;
  if (k->ne[3] != v->ne[3] || k->ne[2] != v->ne[2] || k->ne[1] != v->ne[1] ||
      (k->ne[3] != q->ne[3] && !result.shared_cells) || q->ne[2] % k->ne[2] != 0) {
    return decline("heads or streams of K and V differ");
  }
  result.q = {q->data,  DType::kF32, q->ne[1] * q->ne[3],      q->ne[2],
              q->ne[0], 0,           Stride(*q, 2) / kF32Bytes};
  if (!ReadTokens(*q, 1, result.tokens, result.q.token_stride) ||
      !ReadTokens(node, 2, result.tokens, result.out.token_stride)) {
    return decline("streams of q do not lie evenly");
  }
  result.q.token_stride /= kF32Bytes;
  result.out.data = node.data;
  result.out.token_stride /= kF32Bytes;
  result.out.head_stride = Stride(node, 1) / kF32Bytes;
  if (mask != nullptr) {
    const std::optional<RowFormat> format = host.Format(mask->type);
    int64_t stride = 0;
    if (!format || format->dtype != DType::kF16 || Stride(*mask, 0) != kMaskBytes ||
        mask->ne[3] != q->ne[3] || (mask->ne[2] != 1 && mask->ne[2] != q->ne[2]) ||
        mask->ne[0] < k->ne[1] || mask->ne[1] < q->ne[1] ||
        !ReadTokens(*mask, 1, result.tokens, stride)) {
      return decline("the shape of the mask");
    }
    result.mask = mask;
    result.mask_by_head = mask->ne[2] != 1;
  }
  result.options.scale = params[0];
  if (params[2] != 0.0f) {
    result.options.soft_cap = params[2];
  }
  if (sinks != nullptr) {
    result.options.sinks = {static_cast<const float*>(sinks->data), static_cast<size_t>(q->ne[2])};
  }
  return result;
}

std::string Describe(const Host& host, const Tensor& node) {
  const auto shape = [&](const Tensor* tensor) {
    std::string text = host.type_name(tensor->type);
    for (int axis = 0; axis < 4; ++axis) {
      text.append(axis == 0 ? " " : "x").append(std::to_string(tensor->ne[axis]));
    }
    return text;
  };
  if (node.op == host.top_k) {
    return "top " + std::to_string(node.ne[0]) + " of " + shape(node.src[0]);
  }
  std::string text = "q ";
  text.append(shape(node.src[0])).append(", K ").append(shape(node.src[1]));
  text.append(", V ").append(shape(node.src[2]));
  if (node.src[3] != nullptr) {
    text.append(", mask ").append(shape(node.src[3]));
  }
  return text.append(node.src[4] != nullptr ? ", sinks" : "");
}

bool PlanCache::Fits(const Entry& entry, const AttentionNode& node) {
  return entry.mask == Root(node.mask) &&
         entry.mask_data == (node.mask != nullptr ? node.mask->data : nullptr) &&
         entry.streams == node.streams && entry.shared_cells == node.shared_cells &&
         entry.q.tokens == node.q.tokens && entry.q.heads == node.q.heads &&
         entry.q.head_dim == node.q.head_dim && entry.keys.num_pages == node.keys.num_pages &&
         entry.keys.page_size == node.keys.page_size && entry.keys.kv_heads == node.keys.kv_heads;
}

void PlanCache::Make(const AttentionNode& node, Entry& entry) {
  entry.mask = Root(node.mask);
  entry.mask_data = node.mask != nullptr ? node.mask->data : nullptr;
  entry.q = node.q;
  entry.keys = node.keys;
  entry.streams = node.streams;
  entry.shared_cells = node.shared_cells;
  entry.options = {};
  entry.options.causal = false;
  MaskStructure& structure = entry.structure;
  if (node.mask != nullptr && !node.mask_by_head) {
    const Tensor& mask = *node.mask;
    FindMaskStructure({static_cast<const uint16_t*>(mask.data), node.streams, node.tokens,
                       node.cells(), Stride(mask, 1) / kMaskBytes, Stride(mask, 3) / kMaskBytes},
                      structure);
  } else {
    structure = {};
    structure.full = node.mask == nullptr;
    for (int64_t stream = 0; stream <= node.streams; ++stream) {
      structure.first_token.push_back(static_cast<int32_t>(stream * node.tokens));
    }
    structure.kv_len.assign(static_cast<size_t>(node.streams), static_cast<int32_t>(node.cells()));
  }
  if (structure.causal && !structure.full) {
    entry.options.causal = true;
  } else if (!structure.full) {
    AttentionMask& mask = entry.options.mask;
    mask.data = node.mask->data;
    mask.dtype = DType::kF16;
    mask.tokens = node.q.tokens;
    mask.heads = node.mask->ne[2];
    mask.keys = node.mask->ne[0];
    ReadTokens(*node.mask, 1, node.tokens, mask.token_stride);
    mask.token_stride /= kMaskBytes;
    mask.head_stride = Stride(*node.mask, 2) / kMaskBytes;
  }
  const size_t sequences = structure.kv_len.size();
  entry.page_of.resize(sequences);
  for (size_t i = 0; i < sequences; ++i) {
    entry.page_of[i] =
        node.shared_cells ? 0 : structure.first_token[i] / static_cast<int32_t>(node.tokens);
  }
  PagedBatch batch;
  batch.cu_q_lens = structure.first_token;
  batch.kv_lens = structure.kv_len;
  batch.page_table = entry.page_of.data();
  batch.max_pages = 1;
  batch.page_table_stride = 1;
  entry.plan.Make(node.q, node.keys, batch, entry.options);
}

void PlanCache::Attend(const AttentionNode& node) {
  size_t i = 0;
  while (i < used_ && !Fits(entries_[i], node)) {
    ++i;
  }
  if (i == used_) {
    if (i == entries_.size()) {
      entries_.emplace_back();
    }
    Make(node, entries_[i]);
    ++used_;
  }
  AttentionOptions options = node.options;
  options.causal = entries_[i].options.causal;
  options.mask = entries_[i].options.mask;
  options.bf16_products = true;  // of coded caches: llama.cpp rounds their queries to 8 bits
  PagedAttention(node.q, node.keys, node.values, entries_[i].plan, node.out, options);
}

}  // namespace riffle::llama
