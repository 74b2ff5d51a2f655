// Buffers that show accesses outside of them: guard pages fault, red zones and patterns change.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "riffle/types.h"
#include "testing/distributions.h"
#include "testing/rng.h"

namespace riffle::test {

// `bytes` bytes between two pages that fault when touched. With `at_end` the last byte is the one
// before the upper page, else the first byte is the one after the lower page.
class GuardedBuffer {
 public:
  GuardedBuffer(size_t bytes, bool at_end);
  ~GuardedBuffer();
  GuardedBuffer(const GuardedBuffer&) = delete;
  GuardedBuffer& operator=(const GuardedBuffer&) = delete;

  uint8_t* data() const { return data_; }
  // From then on writing to the buffer faults too.
  void MakeReadOnly();

 private:
  uint8_t* mapping_ = nullptr;
  size_t mapped_ = 0;
  uint8_t* data_ = nullptr;
};

struct InputSpec {
  Distribution distribution = Distribution::kNormal;
  DType dtype = DType::kF32;
  int64_t rows = 1;
  int64_t n = 1;
  int64_t row_stride = 1;  // in elements; may be zero, negative or less than n: rows then overlap
  int64_t k = 1;           // the k that is passed to FillRow
  int64_t shift = 0;       // bytes between the buffer and the guard page
  bool at_end = true;
  uint64_t seed = 0;
  // If not empty, the rows are filled with these bytes, repeated, instead of by the distribution.
  std::vector<uint8_t> raw = {};
};

std::string Describe(const InputSpec& spec);

// A read-only matrix in guarded memory. The elements between its rows are NaN, which comes before
// every number, so an answer that used one of them is visibly wrong.
class Input {
 public:
  explicit Input(const InputSpec& spec);

  const InputSpec& spec() const { return spec_; }
  const MatrixView& view() const { return view_; }

 private:
  InputSpec spec_;
  GuardedBuffer buffer_;
  MatrixView view_;
};

// An output matrix [rows, cols] surrounded by patterned bytes. A twin holds what every byte should
// be: Expect writes into the twin, and Difference compares all bytes of both.
class Output {
 public:
  // The matrix begins `shift` bytes after a 64-byte aligned address. `stride` may be negative.
  Output(int64_t rows, int64_t cols, int64_t stride, size_t element_bytes, size_t shift = 0);

  void* data() { return Cell(bytes_, 0, 0); }
  int64_t stride() const { return stride_; }
  const uint8_t* cell(int64_t row, int64_t col) { return Cell(bytes_, row, col); }

  void Expect(int64_t row, int64_t col, const void* element);
  // Empty if every byte is as expected; otherwise a text about the first one that is not.
  std::string Difference(const char* name);

 private:
  uint8_t* Cell(std::vector<uint8_t>& bytes, int64_t row, int64_t col);

  int64_t rows_, cols_, stride_;
  size_t element_bytes_;
  size_t origin_;  // offset of cell (0, 0) in both vectors
  std::vector<uint8_t> bytes_, expected_;
};

}  // namespace riffle::test
