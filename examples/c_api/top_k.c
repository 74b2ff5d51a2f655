// Riffle from C: the best logits of each row, and a call that fails.
//
//   cc -std=c11 top_k.c $(pkg-config --cflags --libs --static riffle) -o top_k
#include <stdio.h>
#include <string.h>

#include "riffle/c/riffle.h"

int main(void) {
  const float logits[2][5] = {{0.5f, 3, -1, 3, 2}, {-4, -2, -3, -1, -5}};
  const riffle_matrix x = {.data = logits, .rows = 2, .cols = 5, .row_stride = 5};
  float values[2][3];
  int32_t indices[2][3];
  const riffle_topk_out out = {.size = sizeof out,
                               .values = values,
                               .values_stride = 3,
                               .indices = indices,
                               .indices_stride = 3};
  if (riffle_topk(&x, 3, &out, NULL) != RIFFLE_OK) {
    fprintf(stderr, "%s\n", riffle_error_message());
    return 1;
  }
  for (int r = 0; r < 2; ++r) {
    for (int i = 0; i < 3; ++i) {
      printf("%d: %g%s", (int)indices[r][i], (double)values[r][i], i < 2 ? ", " : "\n");
    }
  }
  const riffle_status status = riffle_topk(&x, 6, &out, NULL);
  printf("%s: %s\n", riffle_status_name(status), riffle_error_message());

  const int32_t expected[2][3] = {{1, 3, 4}, {3, 1, 2}};  // of equal logits the lower column
  return status == RIFFLE_BAD_K && memcmp(indices, expected, sizeof expected) == 0 ? 0 : 1;
}
