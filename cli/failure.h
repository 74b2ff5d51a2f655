// How commands fail: by an exception, whose text main() prints as `riffle: error: TEXT`.
#pragma once

#include <fmt/format.h>

#include <cstddef>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace riffle::cli {

// Bad usage or bad input, which the user can correct: exit code 2. Every other exception means that
// the run failed: exit code 1.
class BadInput : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

template <typename... Args>
[[noreturn]] void FailInput(fmt::format_string<Args...> format, Args&&... args) {
  throw BadInput(fmt::format(format, std::forward<Args>(args)...));
}

template <typename... Args>
[[noreturn]] void FailRun(fmt::format_string<Args...> format, Args&&... args) {
  throw std::runtime_error(fmt::format(format, std::forward<Args>(args)...));
}

// Allocates zeros, or throws an error that names what they were for and how to need less.
template <typename T>
std::vector<T> Allocate(size_t count, const char* what, const char* remedy) {
  try {
    return std::vector<T>(count);
  } catch (const std::bad_alloc&) {
  } catch (const std::length_error&) {
  }
  FailRun("no memory for {}, {:.6g} GB; {}", what, static_cast<double>(count) * sizeof(T) * 1e-9,
          remedy);
}

}  // namespace riffle::cli
