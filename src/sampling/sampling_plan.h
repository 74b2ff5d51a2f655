// How a row is sampled: a pure function of its parameters and its length.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/scratch_layout.h"

namespace riffle::sampling {

struct RowParameters {
  float temperature = 1;
  int32_t top_k = 0;
  float top_p = 1;
  float min_p = 0;
};

enum class SamplePath : uint8_t {
  kGreedy,      // the best column
  kCandidates,  // the k best columns decide
  kNucleus,     // the best columns up to a share of the mass of all, however many those are
  kAll,         // every column, or those above a multiple of the largest weight
};

struct RowPlan {
  SamplePath path = SamplePath::kGreedy;
  int64_t k = 1;      // kCandidates: how many
  int64_t first = 1;  // of the candidates that one top-k call finds for all rows; the first of
                      // them is the row's maximum
  float scale = 0;    // weights are 2^((x * unit - max * unit) * scale)
  float unit = 1;
  float top_p = 1;
  float min_weight = 0;  // the weight of the best column is 1

  bool sums_all() const { return path == SamplePath::kNucleus || path == SamplePath::kAll; }
  // The sum over all columns serves log-probabilities too.
  bool raw() const;
};

RowPlan PlanRow(const RowParameters& parameters, int64_t n);

// The scale of the raw logits.
extern const float kRawScale;

// Sums over a row are made of sums over blocks of columns, each in an order of its own.
constexpr int64_t kSumBlock = 2048;
constexpr int64_t SumBlocks(int64_t n) { return (n + kSumBlock - 1) / kSumBlock; }

// The most candidates that are found for all rows in one call, and kept until the draw.
constexpr int64_t kMaxFirst = 1024;

// The candidates that a nucleus is looked for in, in turn; a larger one is found by its mass.
constexpr int64_t kNucleusSteps[] = {64, 1024};

// The first candidates of all rows.
struct FirstScratch {
  core::ScratchArray<uint8_t> values;   // [rows, width] of the dtype
  core::ScratchArray<int32_t> indices;  // [rows, width]
  core::ScratchArray<int32_t> counts;   // [rows]
  size_t bytes = 0;
};
FirstScratch PlanFirst(int64_t rows, int64_t width, size_t element);

// What a thread works in.
struct DrawScratch {
  core::ScratchArray<uint8_t> values;   // [candidates] of the dtype
  core::ScratchArray<int32_t> indices;  // [candidates]
  core::ScratchArray<float> weights;    // of the candidates, or of a block of columns
  core::ScratchArray<uint8_t> rest;     // of top-k, or of the search for a nucleus
  size_t bytes = 0;
};
DrawScratch PlanDraw(int64_t candidates, size_t element, size_t rest);

// Sums of each block of each row, in shared memory.
struct SumsLayout {
  core::ScratchArray<double> sums;  // [rows, blocks]
  core::ScratchArray<double> raw;   // [rows, blocks]
  size_t bytes = 0;
};
SumsLayout PlanSums(int64_t rows, int64_t blocks);

}  // namespace riffle::sampling
