// Compares one call of TopK with the reference, byte for byte.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "riffle/topk.h"
#include "testing/buffers.h"

namespace riffle::test {

// The arguments of TopK besides the input.
struct Call {
  std::vector<int32_t> k;  // [rows], or one k for all rows
  Algorithm algorithm = Algorithm::kAuto;
  bool sorted = true;
  bool largest = true;
  bool wide = false;  // int64 indices
  enum class Ids : uint8_t { kNone, kShared, kPerRow } ids = Ids::kNone;
  bool stats = false;
  int lanes = 128;
  std::vector<int> schedule;
  int threads = 1;
  int64_t values_gap = 0;  // elements between the rows of an output, which must not change
  int64_t indices_gap = 0;
  size_t values_shift = 0;  // bytes from a 64-byte boundary
  size_t indices_shift = 0;

  int64_t MaxK() const;
  int64_t KOfRow(int64_t row) const { return k.size() == 1 ? k[0] : k[static_cast<size_t>(row)]; }
};

std::string Describe(const Call& call);

// The algorithms that support the dtype.
std::vector<Algorithm> AlgorithmsFor(DType dtype);

// The reference's answer for k, whose prefixes are the answers for every smaller k.
struct Truth {
  Truth(const MatrixView& x, int64_t k, bool largest = true);
  std::vector<std::vector<int32_t>> columns;  // [rows][k], best first
};

// The result of a call. Calls that differ only in target, threads or the layout of their outputs
// must have equal results.
struct Outcome {
  std::string fault;  // empty if the answer is right
  std::vector<int32_t> indices;
  std::vector<TopKStats> stats;
};

// Makes the call on the target in use, and compares values, indices, statistics and every byte
// around them with what they should be.
Outcome CheckTopK(const Input& input, const Truth& truth, const Call& call);

// Checks the call on every target of the machine; all must agree. Empty if everything is right,
// otherwise a description of the whole case.
std::string CheckTopKOnAllTargets(const Input& input, const Truth& truth, const Call& call);

// The row of `width` indices that a call should have written: `best`, then -1. If the call is
// unsorted, any permutation of `best` is right and is returned as it was written; otherwise *fault
// says what is wrong with it.
std::vector<int32_t> RowAnswer(Output& indices, int64_t row, const std::vector<int32_t>& best,
                               int64_t width, bool sorted, std::string* fault);

// Empty if both outcomes are right and equal.
std::string Compare(const Outcome& a, const Outcome& b);

// A pool with that many threads, which lives to the end of the process.
ThreadPool& PoolOf(int threads);

// The number in an environment variable, or `otherwise` if it is not set. RIFFLE_TEST_SEED repeats
// a random test, RIFFLE_TEST_CASES makes it longer.
uint64_t FromEnvironment(const char* name, uint64_t otherwise);

}  // namespace riffle::test
