// Sampling for C.
#include "riffle/sampling.h"

#include <cstddef>

#include "c_api/convert.h"

using namespace riffle::c_api;  // NOLINT(google-build-using-namespace): this file belongs to it

namespace {

// The size of the first version of the options.
constexpr size_t kFirstSize = offsetof(riffle_sample_options, seeds);

riffle::TokenLists ToTokenLists(const char* name, const riffle_token_lists& lists) {
  return {ToSpan(name, lists.tokens.data, lists.tokens.count),
          ToSpan(name, lists.offsets.data, lists.offsets.count)};
}

// Adds the members that came with the second version of the options.
void AddAdjustments(const riffle_sample_options& in, riffle::SampleOptions* sample) {
  const auto span = [](const char* name, const riffle_floats& list) {
    return ToSpan(name, list.data, list.count);
  };
  sample->seeds = ToSpan("seeds", in.seeds.data, in.seeds.count);
  sample->allowed = {in.allowed.words, in.allowed.row_stride};
  sample->bias_tokens = ToTokenLists("bias_tokens", in.bias_tokens);
  sample->bias = span("bias", in.bias);
  sample->repetition_penalty = span("repetition_penalty", in.repetition_penalty);
  sample->frequency_penalty = span("frequency_penalty", in.frequency_penalty);
  sample->presence_penalty = span("presence_penalty", in.presence_penalty);
  sample->prompt_tokens = ToTokenLists("prompt_tokens", in.prompt_tokens);
  sample->output_tokens = ToTokenLists("output_tokens", in.output_tokens);
  riffle::core::Check(
      in.on_invalid == RIFFLE_INVALID_FAILS || in.on_invalid == RIFFLE_INVALID_TOKEN,
      riffle::Code::kBadOption, "on_invalid = ", in.on_invalid, " is not a riffle_invalid_row");
  sample->on_invalid = in.on_invalid == RIFFLE_INVALID_TOKEN ? riffle::InvalidRow::kToken
                                                             : riffle::InvalidRow::kThrow;
}

}  // namespace

riffle_status riffle_sample(const riffle_matrix* logits, int32_t* tokens, float* logprobs,
                            const riffle_sample_options* options) {
  return Guarded([&] {
    const riffle::MatrixView matrix = ToMatrix("logits", logits);
    const riffle_sample_options in = ReadOptions("options", options, kFirstSize);
    riffle::SampleOptions sample;
    sample.temperature = ToSpan("temperature", in.temperature.data, in.temperature.count);
    sample.top_k = ToSpan("top_k", in.top_k.data, in.top_k.count);
    sample.top_p = ToSpan("top_p", in.top_p.data, in.top_p.count);
    sample.min_p = ToSpan("min_p", in.min_p.data, in.min_p.count);
    sample.stream = ToSpan("stream", in.stream.data, in.stream.count);
    sample.position = ToSpan("position", in.position.data, in.position.count);
    sample.seed = in.seed;
    sample.pool = ToPool(in.pool);
    AddAdjustments(in, &sample);
    riffle::Sample(matrix, ToSpan("tokens", tokens, matrix.rows),
                   ToOptionalSpan("logprobs", logprobs, matrix.rows), sample);
  });
}
