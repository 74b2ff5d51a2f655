// The fixture of tests that hold PagedAttention against scalar loops in double.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "testing/attention_case.h"
#include "testing/targets.h"

namespace riffle::test {

constexpr DType kDTypes[] = {DType::kF32, DType::kF16, DType::kBF16};

class AttentionOnEveryTarget : public testing::Test {
 protected:
  ~AttentionOnEveryTarget() override { SetTarget(""); }

  static void Check(const AttentionSpec& spec) {
    const AttentionCase attention(spec);
    for (const std::string& target : SweepTargets()) {
      SetTarget(target);
      const std::string difference = attention.Check(attention.Run());
      ASSERT_EQ(difference, "") << Describe(spec) << " on " << target;
    }
  }
};

}  // namespace riffle::test
