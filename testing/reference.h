// The reference for top-k: slow, scalar and exact. It shares no code with src/core/order.h, so a
// mistake there cannot be repeated here.
#pragma once

#include <cstdint>
#include <vector>

#include "riffle/types.h"

namespace riffle::test {

// The exact value of one element of f32, f16 or bf16. `element` may have any alignment.
double Decode(DType dtype, const void* element);

// The exact value of one element of any dtype of selection.
long double Exact(DType dtype, const void* element);

// The address of element (row, col).
const uint8_t* ElementAt(const MatrixView& x, int64_t row, int64_t col);

// Whether value a in column ia comes before value b in column ib: descending, NaN first and equal
// to every NaN, -0 equal to +0, then the lower column.
bool Before(long double a, int64_t ia, long double b, int64_t ib);

// The same for the smallest: ascending, NaN last, -0 equal to +0, then the lower column.
bool BeforeAscending(long double a, int64_t ia, long double b, int64_t ib);

// The columns of the best min(k, end - begin) elements of x[row, begin:end), best first. Columns
// count from column 0 of the row. begin >= end gives none.
std::vector<int32_t> ReferenceTopK(const MatrixView& x, int64_t row, int64_t begin, int64_t end,
                                   int64_t k, bool largest = true);

// How many elements of the row equal element `col` in the order (NaN equals NaN, -0 equals +0).
int64_t ReferenceTies(const MatrixView& x, int64_t row, int64_t col);

// The largest number of `columns` that share a lane, column c being in lane c % lanes.
int64_t MaxLaneLoad(const std::vector<int32_t>& columns, int64_t lanes);

}  // namespace riffle::test
