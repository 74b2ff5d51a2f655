// Loops of the model's layers that Riffle does not provide, dispatched to one SIMD target at run
// time. All work on single rows (or panels), so that a row's result depends on nothing else.
#pragma once

#include <cstdint>

#include "engine/quant/matrix.h"

namespace riffle::engine {

// Multiplies the rows of a tile of x by a panel of a weight.
void MultiplyPanel(const Activations& x, int64_t tile, const Product& product, int64_t panel);
// Stores block `panel` of out = activation(x gate^T) * (x up^T), rounded, for the rows of a tile.
void MultiplyGatedPanel(const Activations& x, int64_t tile, const Matrix& gate, const Matrix& up,
                        Activation activation, int64_t panel, Activations& out);

// Root mean square norm: x / sqrt(mean(x^2) + epsilon) * weight.
struct Norm {
  const float* weight;  // [size]
  float epsilon;
};

// Row `row` of `out` = x, rounded.
void RoundRow(const float* x, int64_t row, Activations& out);
// Row `row` of `out` = norm(x), rounded.
void NormRoundRow(const float* x, const Norm& norm, int64_t row, Activations& out);
// out [size] = norm(x).
void NormRow(const float* x, const Norm& norm, int64_t size, float* out);
// hidden [size] += norm(x).
void AddNormRow(const float* x, const Norm& norm, int64_t size, float* hidden);
// x [size] = rope(norm(x)): pairs (i, i + size / 2) are rotated by angles whose cosines and sines
// are turn[0, size / 2) and turn[size / 2, size). size is a multiple of 32.
void NormRopeRow(const Norm& norm, const float* turn, int64_t size, float* x);
// x [size] = rope(x), the same without a norm.
void RopeRow(const float* turn, int64_t size, float* x);
// sum [size] += x. size is a multiple of 32.
void AddRow(const float* x, int64_t size, float* sum);
// x [size] = cap * tanh(x / cap), for any size. Pre: cap > 0.
void SoftCapRow(float cap, int64_t size, float* x);

}  // namespace riffle::engine
