// A plugin with a copy of the library in it; none of the library's symbols is visible outside.
#include <string>
#include <vector>

#include "riffle/riffle.h"

extern "C" {
[[gnu::visibility("default")]] int PluginBest(const char*) {
  std::vector<float> x(8 * 20000);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i * 7919 % 20011);
  std::vector<float> values(8 * 8);
  std::vector<int32_t> indices(8 * 8);
  riffle::TopK({x.data(), riffle::DType::kF32, 8, 20000, 20000}, 8,
               {values.data(), 8, indices.data(), 8});
  for (size_t row = 0; row < 8; ++row) {
    const float* best = values.data() + row * 8;
    if (best[0] != x[row * 20000 + static_cast<size_t>(indices[row * 8])] || best[0] < 20000) {
      return 0;
    }
  }
  return 1;
}

[[gnu::visibility("default")]] int PluginSetTarget(const char* name) {
  riffle::SetTarget(name);
  return 1;
}

[[gnu::visibility("default")]] int PluginIsTarget(const char* name) {
  return riffle::Target() == name ? 1 : 0;
}
}
