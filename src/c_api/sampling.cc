// Sampling for C.
#include "riffle/sampling.h"

#include "c_api/convert.h"

using namespace riffle::c_api;  // NOLINT(google-build-using-namespace): this file is of that room

riffle_status riffle_sample(const riffle_matrix* logits, int32_t* tokens, float* logprobs,
                            const riffle_sample_options* options) {
  return Guarded([&] {
    const riffle::MatrixView matrix = ToMatrix("logits", logits);
    const riffle_sample_options in = ReadOptions("options", options);
    riffle::SampleOptions sample;
    sample.temperature = ToSpan("temperature", in.temperature.data, in.temperature.count);
    sample.top_k = ToSpan("top_k", in.top_k.data, in.top_k.count);
    sample.top_p = ToSpan("top_p", in.top_p.data, in.top_p.count);
    sample.min_p = ToSpan("min_p", in.min_p.data, in.min_p.count);
    sample.stream = ToSpan("stream", in.stream.data, in.stream.count);
    sample.position = ToSpan("position", in.position.data, in.position.count);
    sample.seed = in.seed;
    sample.pool = ToPool(in.pool);
    riffle::Sample(matrix, ToSpan("tokens", tokens, matrix.rows),
                   ToOptionalSpan("logprobs", logprobs, matrix.rows), sample);
  });
}
