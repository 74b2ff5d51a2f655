#include "sampling/adjust.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <span>

#include "core/check.h"
#include "core/element.h"
#include "core/lease.h"
#include "core/penalty.h"
#include "sampling/sampling_batch.h"

namespace riffle::sampling {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

void CheckPenalty(const char* name, std::span<const float> list, int64_t rows, float above) {
  const auto size = static_cast<int64_t>(list.size());
  core::Check(size <= 1 || size == rows, Code::kBadShape, name, " has ", size, " elements for ",
              rows, " rows; give one for all rows, or one per row");
  for (size_t i = 0; i < list.size(); ++i) {
    core::Check(std::isfinite(list[i]) && list[i] > above, Code::kBadOption, name, "[", i,
                "] = ", list[i], " is not finite", above == 0 ? " and above 0" : "");
  }
}

bool AnyOther(std::span<const float> list, float neutral) {
  return std::any_of(list.begin(), list.end(), [neutral](float x) { return x != neutral; });
}

std::span<const int32_t> TokensOf(const TokenLists& lists, int64_t row) {
  if (lists.offsets.empty()) {
    return {};
  }
  const int64_t begin = lists.offsets[static_cast<size_t>(row)];
  const int64_t end = lists.offsets[static_cast<size_t>(row + 1)];
  return lists.tokens.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
}

void Allow(const int32_t* words, float* x, int64_t n) {
  for (int64_t begin = 0; begin < n; begin += 32) {
    const auto word = static_cast<uint32_t>(words[begin / 32]);
    const int64_t count = std::min<int64_t>(32, n - begin);
    if (word == 0) {
      std::fill_n(x + begin, count, -kInfinity);
    } else if (word != ~uint32_t{0}) {
      for (int64_t bit = 0; bit < count; ++bit) {
        x[begin + bit] = (word >> bit & 1) != 0 ? x[begin + bit] : -kInfinity;
      }
    }
  }
}

// `counts` has an element for each column.
void Penalize(const core::PenaltyFactors& penalties, std::span<const int32_t> prompt,
              std::span<const int32_t> output, float* x, int64_t n, int32_t* counts) {
  constexpr int32_t kInPrompt = int32_t{1} << 30;
  std::fill_n(counts, n, 0);
  for (const int32_t token : prompt) {
    counts[token] = kInPrompt;
  }
  for (const int32_t token : output) {
    ++counts[token];
  }
  const auto change = [&](int32_t token) {
    const int32_t count = counts[token];
    if (count == 0) {
      return;  // an earlier occurrence of the token has applied the penalties
    }
    counts[token] = 0;
    const int32_t output_count = count & (kInPrompt - 1);
    x[token] = core::Penalized(x[token], penalties, output_count);
  };
  std::for_each(prompt.begin(), prompt.end(), change);
  std::for_each(output.begin(), output.end(), change);
}

}  // namespace

void CheckTokens(const char* name, const TokenLists& lists, const MatrixView& logits) {
  const auto count = static_cast<int64_t>(lists.tokens.size());
  const auto offsets = static_cast<int64_t>(lists.offsets.size());
  core::Check(offsets == logits.rows + 1 || (offsets == 0 && count == 0), Code::kBadShape, name,
              " has ", offsets, " offsets for ", logits.rows, " rows; rows + 1 are needed");
  for (int64_t row = 0; row < offsets; ++row) {
    const int64_t before = row == 0 ? 0 : lists.offsets[static_cast<size_t>(row - 1)];
    const int64_t offset = lists.offsets[static_cast<size_t>(row)];
    core::Check(row == 0 ? offset == 0 : offset >= before && offset <= count, Code::kBadValue, name,
                ": offsets[", row, "] = ", offset, " is not in ", before, "..",
                row == 0 ? 0 : count);
  }
  core::Check(offsets == 0 || lists.offsets.back() == count, Code::kBadShape, name, " has ", count,
              " tokens, but its last offset is ", offsets == 0 ? 0 : lists.offsets.back());
  for (int64_t i = 0; i < count; ++i) {
    const int32_t token = lists.tokens[static_cast<size_t>(i)];
    core::Check(token >= 0 && token < logits.cols, Code::kBadValue, name, "[", i, "] = ", token,
                " is not in 0..", logits.cols - 1);
  }
}

bool Adjusts(const SampleOptions& options) {
  return options.allowed.words != nullptr || !options.bias.empty() ||
         AnyOther(options.repetition_penalty, 1) || AnyOther(options.frequency_penalty, 0) ||
         AnyOther(options.presence_penalty, 0);
}

void CheckAdjustments(const MatrixView& logits, const SampleOptions& options) {
  CheckTokens("logit_bias", options.bias_tokens, logits);
  core::Check(options.bias.size() == options.bias_tokens.tokens.size(), Code::kBadShape,
              "logit_bias has ", options.bias.size(), " values for ",
              options.bias_tokens.tokens.size(), " tokens");
  for (size_t i = 0; i < options.bias.size(); ++i) {
    core::Check(options.bias[i] < kInfinity, Code::kBadOption, "logit_bias: values[", i,
                "] = ", options.bias[i], " is not finite or -inf");
  }
  CheckPenalty("repetition_penalty", options.repetition_penalty, logits.rows, 0);
  CheckPenalty("frequency_penalty", options.frequency_penalty, logits.rows, -kInfinity);
  CheckPenalty("presence_penalty", options.presence_penalty, logits.rows, -kInfinity);
  CheckTokens("prompt_tokens", options.prompt_tokens, logits);
  CheckTokens("output_tokens", options.output_tokens, logits);
}

// rows * cols is below 2^62, so * 4 could overflow. The clamped size still fails to be allocated.
size_t AdjustedBytes(const MatrixView& logits) {
  constexpr int64_t kTooMuch = int64_t{1} << 56;
  const int64_t elements = std::min(logits.rows * logits.cols, kTooMuch);
  return (static_cast<size_t>(elements) * sizeof(float) + 63) / 64 * 64;
}

MatrixView Adjust(const MatrixView& logits, const SampleOptions& options, uint8_t* memory) {
  const int64_t n = logits.cols;
  auto* const adjusted = reinterpret_cast<float*>(memory);
  const auto element = static_cast<int64_t>(SizeOf(logits.dtype));
  const auto penalties_of = [&](int64_t row) {
    return core::PenaltyFactors{.repetition = ValueForRow(options.repetition_penalty, row, 1.0f),
                                .presence = ValueForRow(options.presence_penalty, row, 0.0f),
                                .frequency = ValueForRow(options.frequency_penalty, row, 0.0f)};
  };
  core::Lease lease(options.pool);
  lease.ReserveScratch(static_cast<size_t>(n) * sizeof(int32_t));
  lease.Run(logits.rows, [&](int64_t row, uint8_t* scratch) {
    float* const x = adjusted + row * n;
    const auto* from = static_cast<const uint8_t*>(logits.data) + row * logits.row_stride * element;
    if (logits.dtype == DType::kF32) {
      std::memcpy(x, from, static_cast<size_t>(n) * sizeof(float));
    } else {
      for (int64_t i = 0; i < n; ++i) {
        x[i] = core::LoadElement(logits.dtype, from + i * element);
      }
    }
    if (options.allowed.words != nullptr) {
      Allow(options.allowed.words + row * options.allowed.row_stride, x, n);
    }
    const std::span<const int32_t> biased = TokensOf(options.bias_tokens, row);
    for (size_t i = 0; i < biased.size(); ++i) {
      x[biased[i]] +=
          options.bias[static_cast<size_t>(&biased[i] - options.bias_tokens.tokens.data())];
    }
    const auto prompt = TokensOf(options.prompt_tokens, row);
    const auto output = TokensOf(options.output_tokens, row);
    const core::PenaltyFactors penalties = penalties_of(row);
    if (penalties.any() && !(prompt.empty() && output.empty())) {
      Penalize(penalties, prompt, output, x, n, reinterpret_cast<int32_t*>(scratch));
    }
  });
  return {adjusted, DType::kF32, logits.rows, n, n};
}

}  // namespace riffle::sampling
