// Converts the structs of the C API to C++ views. Enumerations are checked here, since a C++ enum
// has no name for a wrong value; shapes and pointers are left to the C++ entry points, except where
// a length comes from a pointer that may be null.
#pragma once

#include <cstdint>
#include <span>

#include "c_api/call.h"
#include "c_api/handles.h"
#include "riffle/attention.h"
#include "riffle/linear_topk.h"
#include "riffle/topk.h"
#include "riffle/types.h"

namespace riffle::c_api {

DType ToDType(const char* name, riffle_dtype dtype);
IndexType ToIndexType(const char* name, riffle_index_type type);
KvFormat ToKvFormat(const char* name, riffle_kv_format format);

MatrixView ToMatrix(const char* name, const riffle_matrix* x);
HeadsView ToHeads(const char* name, const riffle_heads* x);
PagedKv ToPagedKv(const char* name, const riffle_paged_kv* kv);
riffle_paged_kv FromPagedKv(const PagedKv& kv);

// A span of `count` elements. A null pointer is allowed only if there are none.
template <typename T>
std::span<T> ToSpan(const char* name, T* data, int64_t count) {
  CheckedCount(name, count);
  core::Check(data != nullptr || count == 0, Code::kBadShape, name, " is null but has ", count,
              " elements");
  return {data, static_cast<size_t>(count)};
}

// The same, but a null pointer means that there is no list.
template <typename T>
std::span<T> ToOptionalSpan(const char* name, T* data, int64_t count) {
  return data == nullptr ? std::span<T>() : ToSpan(name, data, count);
}

IndexSpan ToIndexSpan(const char* name, const void* data, int64_t count, riffle_index_type type);

inline ThreadPool* ToPool(riffle_thread_pool* pool) {
  return pool == nullptr ? nullptr : &pool->pool;
}

}  // namespace riffle::c_api
