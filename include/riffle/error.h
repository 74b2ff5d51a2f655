// Every failure of the library is this exception, thrown before any output is written. When memory
// runs out, wherever that is, the code is kOutOfMemory; no call lets std::bad_alloc through.
#pragma once

#include <cstddef>
#include <stdexcept>
#include <string>
#include <string_view>

#include "riffle/export.h"

namespace riffle {

enum class Code {
  kBadShape,     // a dimension, stride or pointer that describes no array
  kBadK,         // k outside its limits
  kBadRange,     // start, end or length outside the row
  kBadOption,    // an option outside its limits
  kBadDType,     // an element type the call does not support
  kBadPage,      // a page number outside the pool
  kBadSequence,  // an id that is not a sequence of the KV cache
  kBadValue,     // input with no answer, such as a NaN among logits to sample from
  kOverlap,      // an output that overlaps itself or an input
  kOutOfPages,   // the KV cache's pool is full
  kOutOfMemory,  // the system did not grant memory or a thread
};

// what() names the argument, its value and the limit.
class RIFFLE_API Error : public std::runtime_error {
 public:
  Error(Code code, const std::string& what, size_t argument_size = 0)
      : std::runtime_error(what), code_(code), argument_size_(argument_size) {}
  Code code() const { return code_; }

  // The name of the wrong argument, with which what() begins: "kv_lens" in "kv_lens[1] = -1 is not
  // in 0..32". Empty if the text begins otherwise. For bindings that rename it.
  std::string_view argument() const { return {what(), argument_size_}; }

 private:
  Code code_;
  size_t argument_size_;
};

}  // namespace riffle
