// What all functions of the C API have in common. One looks like this:
//
//   riffle_status riffle_topk(const riffle_matrix* x, ...) {
//     return Guarded([&] { TopK(ToMatrix("x", x), ...); });
//   }
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "core/check.h"
#include "riffle/c/riffle.h"
#include "riffle/error.h"

namespace riffle::c_api {

// Keeps the text of the exception being handled for riffle_error_message and returns its status.
// Allocates nothing. Call it in a catch clause.
riffle_status ReportException() noexcept;

// Runs body and turns an exception into a status.
template <typename Body>
riffle_status Guarded(const Body& body) noexcept {
  try {
    body();
    return RIFFLE_OK;
  } catch (...) {
    return ReportException();
  }
}

template <typename T>
T& NotNull(const char* name, T* pointer) {
  core::Check(pointer != nullptr, Code::kBadShape, name, " is null");
  return *pointer;
}

// Checks the length of a list, or a number of rows with one element each. The limit keeps sums of
// bytes within 64 bits.
inline int64_t CheckedCount(const char* name, int64_t count) {
  constexpr int64_t kMax = int64_t{1} << 48;  // no address space has more elements
  core::Check(count >= 0 && count <= kMax, Code::kBadShape, name, " has ", count,
              " elements; 0 to ", kMax, " are possible");
  return count;
}

inline void CheckReserved(const char* name, int32_t reserved) {
  core::Check(reserved == 0, Code::kBadOption, name, ".reserved = ", reserved, " is not 0");
}

// A flag. Only 0 and 1 are allowed, so that later versions can give other values a meaning.
inline bool ToBool(const char* name, int32_t flag) {
  core::Check(flag == 0 || flag == 1, Code::kBadOption, name, " = ", flag, " is neither 0 nor 1");
  return flag == 1;
}

// The size that a struct states for itself in its first member. `first_size` is that of the first
// version that was published.
template <typename T>
size_t StatedSize(const char* name, const T* in, size_t first_size) {
  constexpr size_t kMaxSize = 4096;  // above any struct's, and below most sizes left unset
  size_t size = 0;
  std::memcpy(&size, &NotNull(name, in), sizeof(size));
  core::Check(size >= first_size && size <= kMaxSize, Code::kBadOption, name, ".size = ", size,
              " is not the sizeof of this struct, which has ", sizeof(T), " bytes in riffle ",
              RIFFLE_LIBRARY_VERSION);
  return size;
}

// Copies the members that the library knows of a struct that begins with its size. A caller with a
// newer header may have more members, which must be zero.
template <typename T>
T ReadSized(const char* name, const T* in, size_t first_size = sizeof(T)) {
  const size_t size = StatedSize(name, in, first_size);
  const auto* bytes = reinterpret_cast<const unsigned char*>(in);
  for (size_t i = sizeof(T); i < size; ++i) {
    core::Check(bytes[i] == 0, Code::kBadOption, name, ".size = ", size, ": a member beyond the ",
                sizeof(T), " bytes that riffle ", RIFFLE_LIBRARY_VERSION, " knows is not 0");
  }
  T known = {};
  std::memcpy(static_cast<void*>(&known), in, size < sizeof(T) ? size : sizeof(T));
  return known;
}

// Options: null stands for all defaults.
template <typename T>
T ReadOptions(const char* name, const T* in, size_t first_size = sizeof(T)) {
  return in == nullptr ? T{} : ReadSized(name, in, first_size);
}

// Writes a struct that begins with its size, which the caller has set: no byte beyond it, and zeros
// in members that the library does not know.
template <typename T>
void WriteSized(const char* name, T filled, T* out, size_t first_size = sizeof(T)) {
  filled.size = StatedSize(name, out, first_size);
  std::memset(static_cast<void*>(out), 0, filled.size);
  std::memcpy(static_cast<void*>(out), &filled, filled.size < sizeof(T) ? filled.size : sizeof(T));
}

}  // namespace riffle::c_api
