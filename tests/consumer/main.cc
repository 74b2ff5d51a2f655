// Uses an installed Riffle the way the README shows, and checks what it gets.
#include <riffle/riffle.h>

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

// This project's own Highway, of which it makes what it likes.
namespace hwy {
int64_t SupportedTargets();
}

namespace {

bool AnswersAreRight() {
  const std::vector<float> logits = {0.5f,  3.0f,  -1.0f, 3.0f,  2.0f,    // row 0: a tie
                                     -4.0f, -2.0f, -3.0f, -1.0f, -5.0f};  // row 1: all negative
  const riffle::MatrixView x = riffle::View(logits.data(), /*rows=*/2, /*cols=*/5);
  std::vector<float> values(6);
  std::vector<int32_t> indices(6);
  riffle::TopK(x, 3, riffle::View(values.data(), indices.data(), 3));
  return indices == std::vector<int32_t>{1, 3, 4, 3, 1, 2} &&
         values == std::vector<float>{3, 3, 2, -1, -2, -3};
}

bool ErrorsAreCaught() {
  const float logit = 1;
  float value = 7;
  int32_t index = 7;
  try {
    riffle::TopK(riffle::View(&logit, 1, 1), 2, riffle::View(&value, &index, 2));
  } catch (const riffle::Error& error) {
    return error.code() == riffle::Code::kBadK && value == 7 && index == 7;
  }
  return false;
}

}  // namespace

int main() {
  std::printf("riffle %s on %s, %d threads\n", std::string(riffle::Version()).c_str(),
              riffle::Target().c_str(), riffle::NumThreads());
  if (!AnswersAreRight() || !ErrorsAreCaught() || hwy::SupportedTargets() != 0) {
    std::fprintf(stderr, "riffle_consumer: wrong answers\n");
    return 1;
  }
  return 0;
}
