// Reads the structure of a test case from the fuzzer's bytes. Past their end everything reads as
// zero, so every prefix of an input is an input too.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace riffle::fuzz {

class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : data_(data), size_(size) {}

  bool empty() const { return size_ == 0; }

  template <typename T>
  T Take() {
    T value{};
    const size_t taken = sizeof(T) < size_ ? sizeof(T) : size_;
    if (taken != 0) std::memcpy(&value, data_, taken);
    data_ += taken;
    size_ -= taken;
    return value;
  }
  // A number in first..last, made from two bytes.
  int64_t Between(int64_t first, int64_t last) {
    return first + static_cast<int64_t>(Take<uint16_t>()) % (last - first + 1);
  }
  bool OneIn(int n) { return Take<uint8_t>() % n == n - 1; }

  std::vector<uint8_t> Rest() { return {data_, data_ + size_}; }

 private:
  const uint8_t* data_;
  size_t size_;
};

}  // namespace riffle::fuzz
