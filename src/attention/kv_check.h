// Checks of the pools of keys and values.
#pragma once

#include <cstdint>

#include "core/strided.h"
#include "riffle/attention.h"

namespace riffle::attention {

// Both throw Error and read nothing through the pool's pointers.

// Dtype, format and shape, which a plan depends on. `name` is for the error text.
void CheckKvShape(const char* name, const PagedKv& kv);
// All of it: CheckKvShape, data, scales and addresses.
void CheckKv(const char* name, const PagedKv& kv);

void CheckHeadDim(const char* name, int64_t dim);

// The bytes of a pool's rows, and of scales outside of the rows; empty if there are none.
core::Strided KvRowBytes(const PagedKv& kv);
core::Strided KvScaleBytes(const PagedKv& kv);

}  // namespace riffle::attention
