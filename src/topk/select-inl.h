// What selection is made of: bounds by counting, compress, sorts. Includes what it names; each of
// them is included once per SIMD target.
#include "topk/bound-inl.h"
#include "topk/compress-inl.h"
#include "topk/sort-inl.h"
