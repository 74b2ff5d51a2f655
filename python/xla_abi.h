// What XLA passes to a custom call on a CPU, and what it takes back: the C structures of its
// foreign function interface, versions 0.1 to 0.5 (jaxlib 0.6 to 0.12), as far as riffle.jax reads
// them. Their layout is the same in all of these, so neither jaxlib nor its headers are needed to
// build. python/tests/xla_abi_check.cpp compares them with the headers of the jaxlib that is
// installed.
//
// XLA owns everything that is pointed to; it lives until the call returns. Every structure begins
// with its size, which tells the other side which members an older version lacks.
#pragma once

#include <cstddef>
#include <cstdint>

namespace riffle::python::xla {

constexpr int kMajor = 0;
constexpr int kNewestMinor = 5;  // the newest whose layout was compared

// A linked list of what newer versions add to a call.
struct Extension {
  size_t struct_size;
  int type;
  Extension* next;
};
constexpr int kMetadataExtension = 1;  // asks for the handler's version; not a call

struct Version {
  size_t struct_size;
  Extension* extensions;
  int major;
  int minor;
};

struct Metadata {
  size_t struct_size;
  Version version;
  uint32_t traits;        // 0: a call may have any effect on its results
  int64_t state_type_id;  // since 0.2; 0: the handler keeps no state
};

struct MetadataExtension {
  Extension base;
  Metadata* metadata;
};

enum class ErrorCode : int { kInvalidArgument = 3, kResourceExhausted = 8, kInternal = 13 };

struct Error;  // XLA's; a null pointer is success

struct ErrorCreateArgs {
  size_t struct_size;
  Extension* extensions;
  const char* message;  // copied
  ErrorCode code;
};

// XLA's functions. A handler here needs only the first one.
struct Api {
  size_t struct_size;
  Extension* extensions;
  Version version;
  const void* internal;
  Error* (*create_error)(ErrorCreateArgs*);
};

// Element types by their numbers in XLA.
enum class Type : int {
  kPred = 1,
  kS8 = 2,
  kS16 = 3,
  kS32 = 4,
  kS64 = 5,
  kU8 = 6,
  kU16 = 7,
  kU32 = 8,
  kU64 = 9,
  kF16 = 10,
  kF32 = 11,
  kF64 = 12,
  kBF16 = 16,
  kF8E5M2 = 19,
  kF8E4M3FN = 20,
  kF8E8M0FNU = 33,
};

// A dense array in row-major order.
struct Buffer {
  size_t struct_size;
  Extension* extensions;
  Type type;
  void* data;
  int64_t rank;
  int64_t* dims;  // [rank]
};

// Operands of a call, or its results.
struct Buffers {
  size_t struct_size;
  Extension* extensions;
  int64_t size;
  int* kinds;        // [size], kBufferKind
  Buffer** buffers;  // [size], if all kinds are kBufferKind
};
constexpr int kBufferKind = 1;

struct Name {
  const char* data;
  size_t size;
};

struct Scalar {
  Type type;
  void* value;
};

// Attributes by name; the kind says what a value points to.
struct Attributes {
  size_t struct_size;
  Extension* extensions;
  int64_t size;
  int* kinds;     // [size]
  Name** names;   // [size]
  void** values;  // [size], a Scalar* where the kind is kScalarKind
};
constexpr int kScalarKind = 3;

enum class Stage : int { kInstantiate, kPrepare, kInitialize, kExecute };

struct CallFrame {
  size_t struct_size;
  Extension* extensions;
  const Api* api;
  void* context;
  Stage stage;
  Buffers operands;
  Buffers results;
  Attributes attributes;
};

using Handler = Error*(CallFrame*);

}  // namespace riffle::python::xla
