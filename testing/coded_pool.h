// A pool of keys or values in any code and layout, in guarded memory in which every byte that must
// not matter is NaN.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "riffle/attention.h"
#include "riffle/sparse_attention.h"
#include "testing/buffers.h"
#include "testing/kv_codes.h"

namespace riffle::test {

enum class Layout : uint8_t { kHND, kNHD, kJAX };

struct CodedPoolShape {
  int pages = 1;
  int page_size = 16;
  int heads = 1;
  int dim = 64;
  Layout layout = Layout::kHND;
  int shift = 0;  // bytes by which its arrays are misaligned
};

class CodedPool {
 public:
  CodedPool(const KvCoding& coding, const CodedPoolShape& shape);

  PagedKv view() const;

  // Encodes and writes a row, then replaces x by the exact values that the codes stand for.
  void Put(int page, int token, int head, std::vector<double>& x);
  // The bytes of a row, for a caller that writes codes itself; the scales do not change.
  uint8_t* Row(int page, int token, int head);

  void MakeReadOnly();

 private:
  uint8_t* Scale(int page, int token, int head, int group);
  double MakeScale(int page, int token, int head, int begin, int end, const std::vector<double>& x);

  KvCoding coding_;
  CodedPoolShape shape_;
  std::unique_ptr<GuardedBuffer> rows_;
  std::unique_ptr<GuardedBuffer> scales_;
};

// One head of a pool of several.
PagedKv OneHead(PagedKv kv, int64_t head);

// The pages of one head as rows of SparseAttention.
SparseRows RowsOf(const PagedKv& kv);

}  // namespace riffle::test
