// A FLASH_ATTN_EXT node as a call of PagedAttention.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "ggml_abi.h"
#include "ggml_host.h"
#include "mask_structure.h"
#include "riffle/attention.h"

namespace riffle::llama {

// The operation that a node means, apart from what its mask holds.
//   q [streams, tokens, heads, key_dim] f32; keys and values [streams or 1, cells, kv_heads, dim]
struct AttentionNode {
  int64_t streams = 0;
  int64_t tokens = 0;  // of a stream
  HeadsView q;         // its tokens are those of all streams, in order
  PagedKv keys;        // a stream's cells are a page
  PagedKv values;
  bool shared_cells = false;  // all streams have one page
  AttentionOut out;
  AttentionOptions options;  // without mask and causal
  const ggml::Tensor* mask = nullptr;
  bool mask_by_head = false;

  int64_t cells() const { return keys.page_size; }
};

// The node's operation. None, with `reason`, where ggml's own kernel has to do it. The memory of
// tensors need not be there yet.
std::optional<AttentionNode> ReadAttention(const Host& host, const ggml::Tensor& node,
                                           std::string& reason);

// "q f32 64x1x9x1, K f16 64x256x3x1 ...", for the log. Describes any node that Riffle knows.
std::string Describe(const Host& host, const ggml::Tensor& node);

// Plans of one graph's run: layers that share a mask share a plan. A run writes each tensor once,
// so the address of a mask's tensor identifies its contents.
class PlanCache {
 public:
  void Clear() { used_ = 0; }

  // Runs the node, whose mask has been computed by now.
  void Attend(const AttentionNode& node);

 private:
  struct Entry {
    const ggml::Tensor* mask = nullptr;
    const void* mask_data = nullptr;
    HeadsView q;
    PagedKv keys;
    int64_t streams = 0;
    bool shared_cells = false;
    AttentionOptions options;  // of the calls, without what differs from layer to layer
    MaskStructure structure;
    std::vector<int32_t> page_of;  // [sequences]
    AttentionPlan plan;
  };

  static bool Fits(const Entry& entry, const AttentionNode& node);
  static void Make(const AttentionNode& node, Entry& entry);

  std::vector<Entry> entries_;
  size_t used_ = 0;
};

}  // namespace riffle::llama
