// What all of the C API uses: statuses, types of elements, threads, matrices. riffle/c/riffle.h,
// which includes this, says how functions fail and how structs grow.
#ifndef RIFFLE_C_COMMON_H_
#define RIFFLE_C_COMMON_H_

#include <stddef.h>
#include <stdint.h>

#include "riffle/export.h"
#include "riffle/version.h"

// Raised when functions, constants or members are added.
#define RIFFLE_C_API_VERSION 1

#ifdef __cplusplus
extern "C" {
#endif

// ---- Failures and versions

typedef int32_t riffle_status;
enum {
  RIFFLE_OK = 0,
  RIFFLE_BAD_SHAPE = 1,      // a dimension or stride that describes no array, or a null pointer
  RIFFLE_BAD_K = 2,          // k outside its limits
  RIFFLE_BAD_RANGE = 3,      // a start, end, length or position out of range
  RIFFLE_BAD_OPTION = 4,     // an option outside its limits; a wrong `size`
  RIFFLE_BAD_DTYPE = 5,      // an element type or format that the call does not support
  RIFFLE_BAD_PAGE = 6,       // a page number outside the pool
  RIFFLE_BAD_SEQUENCE = 7,   // an id that is not a sequence of the cache
  RIFFLE_BAD_VALUE = 8,      // input with no answer, such as a NaN among logits to sample from
  RIFFLE_OVERLAP = 9,        // an output that overlaps itself or an input
  RIFFLE_OUT_OF_PAGES = 10,  // the cache's pool is full
  RIFFLE_OUT_OF_MEMORY = 11,
  RIFFLE_INTERNAL = 12,  // a fault of the library
};

// The text of the last failure on the calling thread; "" before the first. Valid until the next
// failure on this thread.
RIFFLE_API const char* riffle_error_message(void);
// "RIFFLE_BAD_K"; "an unknown status" for a number that is not a status.
RIFFLE_API const char* riffle_status_name(riffle_status status);
RIFFLE_API const char* riffle_version(void);    // "0.1.0"
RIFFLE_API int32_t riffle_c_api_version(void);  // RIFFLE_C_API_VERSION of the library

// ---- Types of elements

typedef int32_t riffle_dtype;
enum {
  RIFFLE_F32 = 0,
  RIFFLE_F16 = 1,
  RIFFLE_BF16 = 2,
  RIFFLE_F64 = 3,
  RIFFLE_I8 = 4,
  RIFFLE_U8 = 5,
  RIFFLE_I16 = 6,
  RIFFLE_U16 = 7,
  RIFFLE_I32 = 8,
  RIFFLE_U32 = 9,
  RIFFLE_I64 = 10,
  RIFFLE_U64 = 11,
  RIFFLE_E4M3 = 12,
  RIFFLE_E5M2 = 13,
  RIFFLE_E8M0 = 14,
};

typedef int32_t riffle_index_type;
enum { RIFFLE_INDEX_I32 = 0, RIFFLE_INDEX_I64 = 1 };

// ---- SIMD targets and threads

// The target that kernels run on at present; valid until the next call on this thread. Null on
// failure.
RIFFLE_API const char* riffle_target(void);
// Sets the target of all later calls in the process; "" or null: the best one.
RIFFLE_API riffle_status riffle_set_target(const char* name);

// Threads of the default pool; 0 on failure.
RIFFLE_API int32_t riffle_num_threads(void);
RIFFLE_API riffle_status riffle_set_num_threads(int32_t threads);

// Runs the default pool on another library's threads (riffle::SetParallelRegion); null: on its own.
typedef void (*riffle_parallel_region)(void (*body)(void*), void* data, unsigned threads,
                                       unsigned flags);
RIFFLE_API riffle_status riffle_set_parallel_region(riffle_parallel_region region);

// A thread pool that the caller owns. `threads` includes the calling thread; 0: the CPUs that this
// process may use. A null pool in a call means the default pool, and destroying null does nothing.
typedef struct riffle_thread_pool riffle_thread_pool;
RIFFLE_API riffle_status riffle_thread_pool_create(int32_t threads, riffle_thread_pool** pool);
RIFFLE_API void riffle_thread_pool_destroy(riffle_thread_pool* pool);

// Frees the scratch that the pool and the calling thread keep from call to call.
RIFFLE_API riffle_status riffle_release_scratch(riffle_thread_pool* pool);

// ---- Matrices

// A read-only matrix [rows, cols] whose columns are contiguous.
typedef struct riffle_matrix {
  const void* data;
  int64_t rows;
  int64_t cols;
  int64_t row_stride;
  riffle_dtype dtype;
  int32_t reserved;
} riffle_matrix;

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // RIFFLE_C_COMMON_H_
