// Sampling: Python's arguments to riffle/sampling.h and back.
#include "riffle/sampling.h"

#include <string>
#include <utility>

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

nb::object PySample(nb::handle logits_object, nb::handle temperature, nb::handle top_k,
                    nb::handle top_p, nb::handle min_p, nb::handle seed, nb::handle stream,
                    nb::handle position, nb::handle return_logprobs_object, nb::handle on_invalid) {
  const bool return_logprobs = Bool(return_logprobs_object, "return_logprobs");
  const Array logits(logits_object, "logits");
  const DType dtype = FloatingDType(logits);
  CheckAxes(logits, 2, "[rows, vocab]");
  CheckLastAxisContiguous(logits);
  const List<float> temperatures(temperature, "temperature");
  const List<int32_t> top_ks(top_k, "top_k");
  const List<float> top_ps(top_p, "top_p");
  const List<float> min_ps(min_p, "min_p");
  const List<int64_t> streams(stream, "stream");
  const List<int64_t> positions(position, "position");
  const List<uint64_t> seeds(seed, "seed");
  const SampleOptions options{.temperature = temperatures.get(),
                              .top_k = top_ks.get(),
                              .top_p = top_ps.get(),
                              .min_p = min_ps.get(),
                              .seeds = seeds.get(),
                              .stream = streams.get(),
                              .position = positions.get(),
                              .on_invalid = OnInvalid(on_invalid)};
  const int64_t shape[] = {logits.axis(0).size};
  const auto rows = static_cast<size_t>(shape[0]);
  NewArray tokens = NewArrayLike(logits, Element::kI32, shape);
  NewArray logprobs;
  if (return_logprobs) {
    logprobs = NewArrayLike(logits, Element::kF32, shape);
  }
  {
    const KernelScope scope;
    Sample({logits.data(), dtype, shape[0], logits.axis(1).size, logits.axis(0).stride},
           {static_cast<int32_t*>(tokens.data), rows},
           {static_cast<float*>(logprobs.data), return_logprobs ? rows : 0}, options);
  }
  if (!return_logprobs) {
    return Finished(logits, std::move(tokens));
  }
  return nb::make_tuple(Finished(logits, std::move(tokens)), Finished(logits, std::move(logprobs)));
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
  m.def("sample", &PySample, any, any, any, any, any, any, any, any, any, any);
  m.def("apply_top_k_top_p_", &PyApplyTopKTopP, any, any, any, any);
}

}  // namespace riffle::python
