// The LM head for C.
#include "c_api/convert.h"
#include "riffle/linear_topk.h"

namespace riffle::c_api {
namespace {

WeightView ToWeights(const riffle_weights* weight) {
  NotNull("weight", weight);
  CheckReserved("weight", weight->reserved);
  core::Check(weight->format >= RIFFLE_WEIGHT_F32 && weight->format <= RIFFLE_WEIGHT_Q8_0,
              Code::kBadDType, "weight.format = ", weight->format, " is not a RIFFLE_WEIGHT_...");
  return {weight->data,       static_cast<WeightFormat>(weight->format),
          weight->rows,       weight->cols,
          weight->row_stride, weight->col_stride};
}

LinearOptions ToOptions(const riffle_linear_options* in, const WeightView& weight) {
  const riffle_linear_options options = ReadOptions("options", in);
  LinearOptions result;
  result.bias = {options.bias, ToDType("bias", options.bias_dtype),
                 options.bias == nullptr ? 0 : weight.rows};
  result.round_x = ToBool("round_x", options.round_x);
  result.pool = ToPool(options.pool);
  return result;
}

}  // namespace
}  // namespace riffle::c_api

using namespace riffle::c_api;  // NOLINT(google-build-using-namespace): this file belongs to it

riffle_status riffle_linear(const riffle_matrix* x, const riffle_weights* weight, float* y,
                            int64_t y_stride, const riffle_linear_options* options) {
  return Guarded([&] {
    const riffle::WeightView weights = ToWeights(weight);
    riffle::Linear(ToMatrix("x", x), weights, {y, y_stride}, ToOptions(options, weights));
  });
}

riffle_status riffle_linear_topk(const riffle_matrix* x, const riffle_weights* weight, int64_t k,
                                 const riffle_linear_topk_out* out,
                                 const riffle_linear_options* options) {
  return Guarded([&] {
    const riffle::WeightView weights = ToWeights(weight);
    const riffle_linear_topk_out outputs = ReadSized("out", out);
    CheckReserved("out", outputs.reserved);
    riffle::LinearTopK(ToMatrix("x", x), weights, k,
                       {outputs.values, outputs.values_stride, outputs.indices,
                        outputs.indices_stride, ToIndexType("index_type", outputs.index_type)},
                       ToOptions(options, weights));
  });
}
