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
  kCandidates,  // one of the k best columns
  kNucleus,     // the best columns up to a share of the total mass, however many they are
  kAll,         // all columns, or those above a fraction of the largest weight
};

struct RowPlan {
  SamplePath path = SamplePath::kGreedy;
  int64_t k = 1;          // kCandidates: the number of candidates
  int64_t num_first = 1;  // how many candidates the one top-k call for all rows finds, best first
  float scale = 0;        // weights are 2^((x * unit - max * unit) * scale)
  float unit = 1;
  float top_p = 1;
  float min_weight = 0;  // relative to the best column, whose weight is 1

  bool sums = false;  // whether the weights of all columns are summed before the draw
  // kNucleus: by a NucleusSearch, which finds the maximum and sums the weights itself.
  bool windowed = false;
  // Whether the sum of weights over all columns is also the one that log-probabilities need.
  bool sums_are_raw() const;
};

// Without `draws` the row is only filtered.
RowPlan PlanRow(const RowParameters& parameters, int64_t n, bool draws);

// The scale for raw logits, without a temperature.
extern const float kRawScale;

// The sum over a row is made of sums over blocks of columns, each summed in a fixed order.
constexpr int64_t kSumBlock = 2048;
constexpr int64_t SumBlocks(int64_t n) { return (n + kSumBlock - 1) / kSumBlock; }

// At most this many candidates per row are found in one call for all rows and kept until the draw.
constexpr int64_t kMaxFirst = 1024;

// How many candidates are searched for a nucleus, in turn. A larger nucleus is found by its mass.
constexpr int64_t kNucleusSteps[] = {64, 1024};

// The first candidates of all rows, and what was drawn.
struct FirstScratch {
  core::ScratchArray<uint8_t> values;   // [rows, width] of the dtype
  core::ScratchArray<int32_t> indices;  // [rows, width]
  core::ScratchArray<int32_t> counts;   // [rows]
  core::ScratchArray<int32_t> tokens;   // [rows]
  core::ScratchArray<float> logprobs;   // [rows]
  core::ScratchArray<float> maxima;     // [rows]
  size_t bytes = 0;
};
// `begin`: bytes before them, a multiple of kScratchAlignment.
FirstScratch PlanFirst(int64_t rows, int64_t width, size_t element, size_t begin);

// A thread's scratch for a draw.
struct DrawScratch {
  core::ScratchArray<uint8_t> values;   // [candidates] of the dtype
  core::ScratchArray<int32_t> indices;  // [candidates]
  core::ScratchArray<float> weights;    // of the candidates, or of one block of columns
  core::ScratchArray<uint8_t> rest;     // scratch of top-k, or of the search for a nucleus
  // What a NucleusSearch needs.
  core::ScratchArray<double> kept_sums, block_sums, block_above;  // [blocks]
  core::ScratchArray<int32_t> block_begin;                        // [blocks + 1]
  core::ScratchArray<float> window;
  core::ScratchArray<int32_t> columns;  // [kFewRoom], of a window of few columns
  size_t bytes = 0;
};
// `windowed`: the columns of a row if there is a NucleusSearch, otherwise 0.
DrawScratch PlanDraw(int64_t candidates, size_t element, size_t rest, int64_t windowed);

// The sum of each block of each row, in shared memory.
struct SumsLayout {
  core::ScratchArray<double> sums;  // [rows, blocks]
  core::ScratchArray<double> raw;   // [rows, blocks]
  size_t bytes = 0;
};
SumsLayout PlanSums(int64_t rows, int64_t blocks);

}  // namespace riffle::sampling
