#include "engine/layers/rope.h"

#include <algorithm>
#include <cmath>

namespace riffle::engine {
namespace {

constexpr int64_t kNear = 64;

// For each pair, the weight (0 to 1) of the scaled angle in YaRN's mixture.
std::vector<double> ScaledParts(int64_t head_dim, const RopeSpec& spec) {
  const int64_t half = head_dim / 2;
  std::vector<double> parts(static_cast<size_t>(half), 1.0);
  if (!spec.yarn) {
    return parts;
  }
  // The pair, as a real number, that rotates this many times in the original context.
  const auto pair_of = [&](double turns) {
    return static_cast<double>(head_dim) *
           std::log(spec.yarn->original_context / (turns * 2 * M_PI)) / (2 * std::log(spec.base));
  };
  const double first = std::max(std::floor(pair_of(spec.yarn->beta_fast)), 0.0);
  const double last =
      std::min(std::ceil(pair_of(spec.yarn->beta_slow)), static_cast<double>(head_dim - 1));
  for (int64_t i = 0; i < half; ++i) {
    const double way = (static_cast<double>(i) - first) / std::max(last - first, 0.001);
    parts[static_cast<size_t>(i)] = std::clamp(way, 0.0, 1.0);
  }
  return parts;
}

}  // namespace

RopeAngles::RopeAngles(int64_t head_dim, const RopeSpec& spec, std::span<const float> factors)
    : head_dim_(head_dim), magnitude_(spec.magnitude) {
  const int64_t half = head_dim / 2;
  const std::vector<double> scaled = ScaledParts(head_dim, spec);
  for (int64_t i = 0; i < half; ++i) {
    const double exponent = -2.0 * static_cast<double>(i) / static_cast<double>(head_dim);
    const double factor = factors.empty() ? 1.0 : factors[static_cast<size_t>(i)];
    const double part = scaled[static_cast<size_t>(i)];
    const double scale = spec.scale * part + (1 - part);
    frequency_.push_back(scale * std::pow(spec.base, exponent) / factor);
  }
  for (int64_t position = 0; position < kNear; ++position) {
    for (int64_t i = 0; i < half; ++i) {
      near_.push_back(Of(position, i));
    }
  }
  far_.resize(static_cast<size_t>(half));
}

RopeAngles::Rotation RopeAngles::Of(int64_t position, int64_t i) const {
  const double angle = static_cast<double>(position) * frequency_[static_cast<size_t>(i)];
  return {std::cos(angle), std::sin(angle)};
}

// A position is a multiple of 64 plus a rest: cosine and sine of the sum follow from those of the
// two parts, in double.
void RopeAngles::Grow(int64_t last) {
  const int64_t half = head_dim_ / 2;
  int64_t position = static_cast<int64_t>(values_.size()) / head_dim_;
  if (position > last) {
    return;
  }
  values_.resize(static_cast<size_t>((last + 1) * head_dim_));
  for (; position <= last; ++position) {
    if (position % kNear == 0) {
      for (int64_t i = 0; i < half; ++i) {
        far_[static_cast<size_t>(i)] = Of(position, i);
      }
    }
    const Rotation* near = near_.data() + position % kNear * half;
    float* row = values_.data() + position * head_dim_;
    for (int64_t i = 0; i < half; ++i) {
      const Rotation far = far_[static_cast<size_t>(i)];
      const double cosine = far.cosine * near[i].cosine - far.sine * near[i].sine;
      const double sine = far.sine * near[i].cosine + far.cosine * near[i].sine;
      row[i] = static_cast<float>(magnitude_ * cosine);
      row[half + i] = static_cast<float>(magnitude_ * sine);
    }
  }
}

}  // namespace riffle::engine
