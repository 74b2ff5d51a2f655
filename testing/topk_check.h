// One call of TopK held against the reference, byte for byte.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "riffle/topk.h"
#include "testing/buffers.h"

namespace riffle::test {

// What is asked of TopK for an input.
struct Call {
  std::vector<int32_t> k;  // one element: the k of all rows
  Algorithm algorithm = Algorithm::kAuto;
  bool sorted = true;
  bool largest = true;
  bool wide = false;  // int64 indices
  enum class Ids : uint8_t { kNone, kShared, kPerRow } ids = Ids::kNone;
  bool stats = false;
  int lanes = 128;
  std::vector<int> schedule;
  int threads = 1;
  int64_t values_gap = 0;  // elements of other data between the rows of an output
  int64_t indices_gap = 0;
  size_t values_shift = 0;  // bytes from a 64-byte boundary
  size_t indices_shift = 0;

  int64_t MaxK() const;
  int64_t KOfRow(int64_t row) const { return k.size() == 1 ? k[0] : k[static_cast<size_t>(row)]; }
};

std::string Describe(const Call& call);

// Those that support the dtype.
std::vector<Algorithm> AlgorithmsFor(DType dtype);

// The reference's answer for k or any smaller one.
struct Truth {
  Truth(const MatrixView& x, int64_t k, bool largest = true);
  std::vector<std::vector<int32_t>> columns;  // [rows][k], best first
};

// What a call gave. Calls that differ in target, threads or the layout of their outputs only must
// give the same.
struct Outcome {
  std::string fault;  // empty: right
  std::vector<int32_t> indices;
  std::vector<TopKStats> stats;
};

// Runs the call on the target in use and compares values, indices, statistics and every byte around
// them with the truth.
Outcome CheckTopK(const Input& input, const Truth& truth, const Call& call);

// The same on every target of the machine, which must agree. Empty when right; otherwise a
// description of the whole case.
std::string CheckTopKOnAllTargets(const Input& input, const Truth& truth, const Call& call);

// The row of `width` indices that a call should have written: `best`, then -1. Of an unsorted
// answer, what it wrote, if that is some order of `best`; otherwise *fault says what is wrong.
std::vector<int32_t> RowAnswer(Output& indices, int64_t row, const std::vector<int32_t>& best,
                               int64_t width, bool sorted, std::string* fault);

// "" when both outcomes are right and the same.
std::string Compare(const Outcome& a, const Outcome& b);

// A pool that lives to the end of the process.
ThreadPool& PoolOf(int threads);

// The number an environment variable holds, else `otherwise`: for RIFFLE_TEST_SEED and
// RIFFLE_TEST_CASES, which repeat or prolong the random tests.
uint64_t FromEnvironment(const char* name, uint64_t otherwise);

}  // namespace riffle::test
