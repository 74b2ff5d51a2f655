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
  kBadDType,     // an element type that the call does not take
  kBadPage,      // a page number outside the pool
  kBadSequence,  // an id of no sequence of the KV cache
  kBadValue,     // elements that have no answer, such as a NaN among logits to sample from
  kOverlap,      // an output that overlaps itself or an input
  kOutOfPages,   // the KV cache's pool is full
  kOutOfMemory,  // memory or a thread that the call needs could not be had
};

// what() names the argument, its value and the limit.
class RIFFLE_API Error : public std::runtime_error {
 public:
  Error(Code code, const std::string& what, size_t argument_size = 0)
      : std::runtime_error(what), code_(code), argument_size_(argument_size) {}
  Code code() const { return code_; }

  // The argument that is wrong, with which what() begins: "kv_lens" of "kv_lens[1] = -1 is not in
  // 0..32"; empty if the text begins otherwise. For callers whose arguments have other names.
  std::string_view argument() const { return {what(), argument_size_}; }

 private:
  Code code_;
  size_t argument_size_;
};

}  // namespace riffle
