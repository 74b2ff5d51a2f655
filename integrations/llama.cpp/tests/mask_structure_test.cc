// FindMaskStructure on random masks of the kinds that llama.cpp makes: its result is compared with
// every element of the mask.
#include "mask_structure.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "testing/rng.h"

namespace riffle::llama {
namespace {

constexpr uint16_t kHidden = 0xfc00;

struct Mask {
  int64_t streams;
  int64_t tokens;
  int64_t keys;
  std::vector<uint16_t> data;

  Mask(int64_t s, int64_t t, int64_t k)
      : streams(s), tokens(t), keys(k), data(static_cast<size_t>(s * t * k), kHidden) {}
  uint16_t& At(int64_t token, int64_t key) { return data[static_cast<size_t>(token * keys + key)]; }
  uint16_t At(int64_t token, int64_t key) const {
    return data[static_cast<size_t>(token * keys + key)];
  }
  MaskStructure Find() const {
    MaskStructure structure;
    FindMaskStructure({data.data(), streams, tokens, keys, keys, tokens * keys}, structure);
    return structure;
  }
};

// Sequences must cover all tokens, each within a stream, and hide or show keys as the mask does.
void Check(const Mask& mask, const std::string& name) {
  const MaskStructure found = mask.Find();
  const auto& first = found.first_token;
  ASSERT_EQ(first.size(), found.kv_len.size() + 1) << name;
  ASSERT_EQ(first.front(), 0) << name;
  ASSERT_EQ(first.back(), mask.streams * mask.tokens) << name;
  for (size_t i = 0; i < found.kv_len.size(); ++i) {
    ASSERT_LT(first[i], first[i + 1]) << name;
    ASSERT_EQ(first[i] / mask.tokens, (first[i + 1] - 1) / mask.tokens) << name;
    const int64_t length = first[i + 1] - first[i];
    for (int64_t token = first[i]; token < first[i + 1]; ++token) {
      const int64_t end = found.full     ? found.kv_len[i]
                          : found.causal ? found.kv_len[i] - length + 1 + token - first[i]
                                         : found.kv_len[i];
      for (int64_t key = 0; key < mask.keys; ++key) {
        const uint16_t x = mask.At(token, key);
        if (key >= end) {
          ASSERT_EQ(x, kHidden) << name << ", token " << token << ", key " << key;
        } else if (found.causal || found.full) {
          ASSERT_EQ(x & 0x7fff, 0) << name << ", token " << token << ", key " << key;
        }
      }
    }
  }
}

Mask Causal(int64_t streams, int64_t tokens, int64_t keys, int64_t before) {
  Mask mask(streams, tokens, keys);
  for (int64_t token = 0; token < streams * tokens; ++token) {
    for (int64_t key = 0; key <= before + token % tokens; ++key) {
      mask.At(token, key) = 0;
    }
  }
  return mask;
}

TEST(MaskStructure, CausalNeedsNoMask) {
  for (const int64_t before : {0, 1, 63, 64, 100, 200}) {
    const Mask mask = Causal(2, 7, 256, before);
    EXPECT_TRUE(mask.Find().causal) << before;
    EXPECT_EQ(mask.Find().kv_len, std::vector<int32_t>(2, static_cast<int32_t>(before + 7)));
    Check(mask, "causal");
  }
}

TEST(MaskStructure, OneTokenIsFullUpToItsEnd) {
  for (const int64_t before : {0, 63, 64, 255}) {
    const Mask mask = Causal(3, 1, 256, before);
    EXPECT_TRUE(mask.Find().full) << before;
    Check(mask, "one token");
  }
  EXPECT_TRUE(Mask(2, 3, 256).Find().full);  // all hidden: every token sees the first 0 keys
  Check(Mask(2, 3, 256), "all hidden");
}

TEST(MaskStructure, OneElementOutOfPlaceNeedsTheMask) {
  for (const int64_t key : {0, 5, 63, 64, 99}) {
    for (const uint16_t x : {kHidden, uint16_t{0xb800}}) {
      Mask mask = Causal(1, 5, 256, 100);
      mask.At(2, key) = x;
      const MaskStructure found = mask.Find();
      EXPECT_FALSE(found.causal || found.full) << key;
      Check(mask, "one element");
    }
  }
}

TEST(MaskStructure, SequencesInOneCacheAreSequences) {
  Mask mask(1, 4, 1024);
  for (int64_t token = 0; token < 4; ++token) {
    for (int64_t key = 0; key < 200; ++key) {
      mask.At(token, token * 256 + key) = 0;
    }
  }
  EXPECT_EQ(mask.Find().first_token, (std::vector<int32_t>{0, 1, 2, 3, 4}));
  EXPECT_EQ(mask.Find().kv_len, (std::vector<int32_t>{200, 456, 712, 968}));
  // Two tokens of one sequence read its keys together.
  for (int64_t key = 0; key < 1024; ++key) {
    mask.At(2, key) = mask.At(1, key);
  }
  EXPECT_EQ(mask.Find().first_token, (std::vector<int32_t>{0, 1, 3, 4}));
  Check(mask, "sequences");
}

TEST(MaskStructure, RandomMasks) {
  test::Rng rng(1);
  for (int round = 0; round < 300; ++round) {
    Mask mask(rng.Between(1, 3), rng.Between(1, 9), rng.Between(1, 400));
    const int64_t runs = rng.Between(1, 4);
    for (int64_t token = 0; token < mask.streams * mask.tokens; ++token) {
      for (int64_t run = 0; run < runs; ++run) {
        const int64_t begin = rng.OneIn(3) ? 0 : rng.Below(mask.keys);
        const int64_t end = rng.Between(begin, mask.keys);
        for (int64_t key = begin; key < end; ++key) {
          mask.At(token, key) = rng.OneIn(20) ? 0x8000 : rng.OneIn(50) ? 0x3c00 : 0;
        }
      }
    }
    Check(mask, "round " + std::to_string(round));
  }
}

}  // namespace
}  // namespace riffle::llama
