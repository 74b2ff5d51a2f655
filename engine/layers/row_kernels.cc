#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/layers/row_kernels.cc"
#include <hwy/foreach_target.h>  // includes this file once per target
// clang-format off
#include <hwy/highway.h>
// clang-format on
#include "core/dispatch.h"
#include "engine/layers/row_kernels-inl.h"
#include "engine/layers/row_kernels.h"
#include "engine/quant/matrix-inl.h"

#if HWY_ONCE
namespace riffle::engine {

HWY_EXPORT(MultiplyPanelOf);
HWY_EXPORT(MultiplyGatedPanelOf);
HWY_EXPORT(RoundRowOf);
HWY_EXPORT(NormRoundRowOf);
HWY_EXPORT(NormRowOf);
HWY_EXPORT(AddNormRowOf);
HWY_EXPORT(NormRopeRowOf);
HWY_EXPORT(RopeRowOf);
HWY_EXPORT(AddRowOf);
HWY_EXPORT(SoftCapRowOf);

void MultiplyPanel(const Activations& x, int64_t tile, const Product& product, int64_t panel) {
  core::ForTarget(HWY_DISPATCH_TABLE(MultiplyPanelOf))(x, tile, product, panel);
}
void MultiplyGatedPanel(const Activations& x, int64_t tile, const Matrix& gate, const Matrix& up,
                        Activation activation, int64_t panel, Activations& out) {
  core::ForTarget(HWY_DISPATCH_TABLE(MultiplyGatedPanelOf))(x, tile, gate, up, activation, panel,
                                                            out);
}
void RoundRow(const float* x, int64_t row, Activations& out) {
  core::ForTarget(HWY_DISPATCH_TABLE(RoundRowOf))(x, row, out);
}
void NormRoundRow(const float* x, const Norm& norm, int64_t row, Activations& out) {
  core::ForTarget(HWY_DISPATCH_TABLE(NormRoundRowOf))(x, norm, row, out);
}
void NormRow(const float* x, const Norm& norm, int64_t size, float* out) {
  core::ForTarget(HWY_DISPATCH_TABLE(NormRowOf))(x, norm, size, out);
}
void AddNormRow(const float* x, const Norm& norm, int64_t size, float* hidden) {
  core::ForTarget(HWY_DISPATCH_TABLE(AddNormRowOf))(x, norm, size, hidden);
}
void NormRopeRow(const Norm& norm, const float* turn, int64_t size, float* x) {
  core::ForTarget(HWY_DISPATCH_TABLE(NormRopeRowOf))(norm, turn, size, x);
}
void RopeRow(const float* turn, int64_t size, float* x) {
  core::ForTarget(HWY_DISPATCH_TABLE(RopeRowOf))(turn, size, x);
}
void AddRow(const float* x, int64_t size, float* sum) {
  core::ForTarget(HWY_DISPATCH_TABLE(AddRowOf))(x, size, sum);
}
void SoftCapRow(float cap, int64_t size, float* x) {
  core::ForTarget(HWY_DISPATCH_TABLE(SoftCapRowOf))(cap, size, x);
}

}  // namespace riffle::engine
#endif
