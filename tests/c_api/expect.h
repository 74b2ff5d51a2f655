// What the C programs of this folder check by.
#ifndef RIFFLE_TESTS_C_API_EXPECT_H_
#define RIFFLE_TESTS_C_API_EXPECT_H_

#include <stdio.h>
#include <string.h>

#include "riffle/c/riffle.h"

static int failures = 0;

#define EXPECT(condition)                                                           \
  do {                                                                              \
    if (!(condition)) {                                                             \
      ++failures;                                                                   \
      fprintf(stderr, "%s:%d: %s does not hold\n", __FILE__, __LINE__, #condition); \
    }                                                                               \
  } while (0)

// The call fails with this status, and its text has these words.
#define EXPECT_FAILS(call, status, words)                                    \
  do {                                                                       \
    const riffle_status got = (call);                                        \
    if (got != (status) || strstr(riffle_error_message(), words) == NULL) {  \
      ++failures;                                                            \
      fprintf(stderr, "%s:%d: %s gives %s: %s\n", __FILE__, __LINE__, #call, \
              riffle_status_name(got), riffle_error_message());              \
    }                                                                        \
  } while (0)

#define EXPECT_OK(call) EXPECT_FAILS(call, RIFFLE_OK, "")

enum { kHeads = 4, kKvHeads = 2, kDim = 32, kTokens = 9 };

static inline riffle_heads Heads(const float* data, int64_t tokens, int64_t heads) {
  const riffle_heads x = {data, tokens, heads, kDim, heads * kDim, kDim, RIFFLE_F32, 0};
  return x;
}

#endif  // RIFFLE_TESTS_C_API_EXPECT_H_
