// Sampling: Python's arguments to riffle/sampling.h and back.
#include "riffle/sampling.h"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "arguments.h"
#include "array.h"
#include "bindings.h"
#include "kernel_scope.h"
#include "sampling_lists.h"

namespace riffle::python {
namespace {

// The mode of sample for rows without an answer.
InvalidRow OnInvalid(nb::handle object) {
  std::string text;
  if (nb::try_cast(object, text)) {
    if (text == "raise") {
      return InvalidRow::kThrow;
    }
    if (text == "token") {
      return InvalidRow::kToken;
    }
  }
  ThrowValueError("on_invalid must be 'raise' or 'token', not " + Repr(object));
}

// The parameters of a draw, in the order in which both functions take them.
struct DrawLists {
  List<float> temperature;
  List<int32_t> top_k;
  List<float> top_p, min_p;
  List<uint64_t> seed;
  List<int64_t> stream, position;
  InvalidRow on_invalid;

  DrawLists(nb::handle temperature_object, nb::handle top_k_object, nb::handle top_p_object,
            nb::handle min_p_object, nb::handle seed_object, nb::handle stream_object,
            nb::handle position_object, nb::handle on_invalid_object)
      : temperature(temperature_object, "temperature"),
        top_k(top_k_object, "top_k"),
        top_p(top_p_object, "top_p"),
        min_p(min_p_object, "min_p"),
        seed(seed_object, "seed"),
        stream(stream_object, "stream"),
        position(position_object, "position"),
        on_invalid(OnInvalid(on_invalid_object)) {}

  SampleOptions options() const {
    return {.temperature = temperature.get(),
            .top_k = top_k.get(),
            .top_p = top_p.get(),
            .min_p = min_p.get(),
            .seeds = seed.get(),
            .stream = stream.get(),
            .position = position.get(),
            .on_invalid = on_invalid};
  }
};

// [rows, (vocab + 31) / 32] int32, or None.
class Allowed {
 public:
  Allowed(nb::handle object, const Array& logits) {
    if (object.is_none()) {
      return;
    }
    words_.emplace(object, "allowed", 2, "[rows, (vocab + 31) / 32]");
    CheckElement(words_->array(), Element::kI32);
    const int64_t shape[] = {logits.axis(0).size, (logits.axis(1).size + 31) / 32};
    CheckShape(words_->array(), shape);
  }
  BitmaskView get() const {
    return words_.has_value() ? BitmaskView{static_cast<const int32_t*>(words_->data().data()),
                                            words_->row_stride()}
                              : BitmaskView();
  }

 private:
  std::optional<Indices> words_;
};

nb::object PySample(nb::handle logits_object, nb::handle temperature, nb::handle top_k,
                    nb::handle top_p, nb::handle min_p, nb::handle seed, nb::handle stream,
                    nb::handle position, nb::handle return_logprobs_object, nb::handle on_invalid,
                    nb::handle top_logprobs, nb::handle allowed_object, nb::handle logit_bias,
                    nb::handle repetition_penalty, nb::handle frequency_penalty,
                    nb::handle presence_penalty, nb::handle prompt_tokens,
                    nb::handle output_tokens) {
  const bool return_logprobs = Bool(return_logprobs_object, "return_logprobs");
  const Array logits(logits_object, "logits");
  const DType dtype = FloatingDType(logits);
  CheckAxes(logits, 2, "[rows, vocab]");
  CheckLastAxisContiguous(logits);
  const DrawLists draw(temperature, top_k, top_p, min_p, seed, stream, position, on_invalid);
  const Allowed allowed(allowed_object, logits);
  const Ragged bias(logit_bias, "logit_bias", 3);
  const List<float> repetition(repetition_penalty, "repetition_penalty");
  const List<float> frequency(frequency_penalty, "frequency_penalty");
  const List<float> presence(presence_penalty, "presence_penalty");
  const Ragged prompt(prompt_tokens, "prompt_tokens", 2);
  const Ragged output(output_tokens, "output_tokens", 2);
  SampleOptions options = draw.options();
  options.allowed = allowed.get();
  options.bias_tokens = bias.lists();
  options.bias = bias.values();
  options.repetition_penalty = repetition.get();
  options.frequency_penalty = frequency.get();
  options.presence_penalty = presence.get();
  options.prompt_tokens = prompt.lists();
  options.output_tokens = output.lists();
  const int64_t k = Int64(top_logprobs, "top_logprobs");
  const int64_t vocab = logits.axis(1).size;
  if (k < 0 || k > vocab) {
    ThrowValueError("top_logprobs = " + std::to_string(k) + " is not in 0.." +
                    std::to_string(vocab) + ", the number of columns");
  }
  const int64_t shape[] = {logits.axis(0).size, k};
  const auto rows = static_cast<size_t>(shape[0]);
  const std::span<const int64_t> vector(shape, 1);
  NewArray tokens = NewArrayLike(logits, Element::kI32, vector);
  NewArray logprobs, top_values, top_tokens;
  if (return_logprobs) {
    logprobs = NewArrayLike(logits, Element::kF32, vector);
  }
  if (k > 0) {
    top_values = NewArrayLike(logits, Element::kF32, shape);
    top_tokens = NewArrayLike(logits, Element::kI32, shape);
  }
  {
    const KernelScope scope;
    Sample(
        {logits.data(), dtype, shape[0], vocab, logits.axis(0).stride},
        {static_cast<int32_t*>(tokens.data), rows},
        {static_cast<float*>(logprobs.data), return_logprobs ? rows : 0},
        {k, {static_cast<float*>(top_values.data), k}, {static_cast<int32_t*>(top_tokens.data), k}},
        options);
  }
  if (!return_logprobs && k == 0) {
    return Finished(logits, std::move(tokens));
  }
  nb::list results;
  results.append(Finished(logits, std::move(tokens)));
  if (return_logprobs) {
    results.append(Finished(logits, std::move(logprobs)));
  }
  if (k > 0) {
    results.append(Finished(logits, std::move(top_values)));
    results.append(Finished(logits, std::move(top_tokens)));
  }
  return nb::tuple(results);
}

nb::object PyVerifyDrafts(nb::handle logits_object, nb::handle draft_tokens, nb::handle offsets,
                          nb::handle draft_probs, nb::handle temperature, nb::handle top_k,
                          nb::handle top_p, nb::handle min_p, nb::handle seed, nb::handle stream,
                          nb::handle position, nb::handle on_invalid) {
  const Array logits(logits_object, "logits");
  const DType dtype = FloatingDType(logits);
  CheckAxes(logits, 2, "[drafts + requests, vocab]");
  CheckLastAxisContiguous(logits);
  const std::vector<int32_t> tokens = Tokens(Indices(draft_tokens, "draft_tokens", 1, "[drafts]"));
  const Indices offset_array(offsets, "offsets", 1, "[requests + 1]");
  std::vector<int64_t> offset_list;
  int64_t most = 0;
  for (size_t i = 0; i < offset_array.get().size(); ++i) {
    offset_list.push_back(offset_array.get()[i]);
    most = i == 0 ? most : std::max(most, offset_list[i] - offset_list[i - 1]);
  }
  DraftLists drafts{tokens, offset_list, {}};
  std::optional<Array> probabilities;
  if (!draft_probs.is_none()) {
    probabilities.emplace(draft_probs, "draft_probs");
    CheckElement(*probabilities, Element::kF32);
    CheckLastAxisContiguous(*probabilities);
    const int64_t shape[] = {static_cast<int64_t>(tokens.size()), logits.axis(1).size};
    CheckShape(*probabilities, shape);
    if (shape[0] > 0) {
      drafts.probabilities = {probabilities->data(), DType::kF32, shape[0], shape[1],
                              probabilities->axis(0).stride};
    }
  }
  const DrawLists draw(temperature, top_k, top_p, min_p, seed, stream, position, on_invalid);
  const int64_t requests = std::max<int64_t>(static_cast<int64_t>(offset_list.size()) - 1, 0);
  // Falling offsets, which the call refuses, ask for no more columns than there are drafts.
  const int64_t width = std::min(most, static_cast<int64_t>(tokens.size())) + 1;
  const int64_t shape[] = {requests, width};
  NewArray result = NewArrayLike(logits, Element::kI32, shape);
  {
    const KernelScope scope;
    VerifyDrafts(
        {logits.data(), dtype, logits.axis(0).size, logits.axis(1).size, logits.axis(0).stride},
        drafts, {static_cast<int32_t*>(result.data), width}, width, draw.options());
  }
  return Finished(logits, std::move(result));
}

void PyApplyTopKTopP(nb::handle logits_object, nb::handle top_k, nb::handle top_p,
                     nb::handle min_p) {
  const Array logits(logits_object, "logits", Access::kWrite);
  CheckElement(logits, Element::kF32);
  CheckAxes(logits, 2, "[rows, vocab]");
  CheckLastAxisContiguous(logits);
  const List<int32_t> top_ks(top_k, "top_k");
  const List<float> top_ps(top_p, "top_p");
  const List<float> min_ps(min_p, "min_p");
  const FilterOptions options{.top_k = top_ks.get(), .top_p = top_ps.get(), .min_p = min_ps.get()};
  const KernelScope scope;
  ApplyTopKTopP({static_cast<float*>(logits.data()), logits.axis(0).stride}, logits.axis(0).size,
                logits.axis(1).size, options);
}

}  // namespace

void BindSampling(nb::module_& m) {
  const auto any = nb::arg().none();  // the functions below handle None
  m.def("sample", &PySample, any, any, any, any, any, any, any, any, any, any, any, any, any, any,
        any, any, any, any);
  m.def("verify_drafts", &PyVerifyDrafts, any, any, any, any, any, any, any, any, any, any, any,
        any);
  m.def("apply_top_k_top_p_", &PyApplyTopKTopP, any, any, any, any);
}

}  // namespace riffle::python
