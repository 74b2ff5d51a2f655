// Lengths and page numbers in the caller's type: int32 or int64.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>

namespace riffle {

// A pointer to int32 or int64.
class IndexPointer {
 public:
  constexpr IndexPointer() = default;
  // Implicit, so that a call accepts either pointer.
  constexpr IndexPointer(std::nullptr_t) {}                               // NOLINT
  constexpr IndexPointer(const int32_t* data) : data_(data) {}            // NOLINT
  constexpr IndexPointer(const int64_t* data) : data_(data), size_(8) {}  // NOLINT

  constexpr const void* data() const { return data_; }
  constexpr int64_t element_size() const { return size_; }
  constexpr explicit operator bool() const { return data_ != nullptr; }

  int64_t operator[](int64_t i) const {
    return size_ == 8 ? static_cast<const int64_t*>(data_)[i]
                      : static_cast<const int32_t*>(data_)[i];
  }
  IndexPointer operator+(int64_t n) const {
    return size_ == 8 ? IndexPointer(static_cast<const int64_t*>(data_) + n)
                      : IndexPointer(static_cast<const int32_t*>(data_) + n);
  }
  IndexPointer& operator+=(int64_t n) { return *this = *this + n; }

 private:
  const void* data_ = nullptr;
  int size_ = 4;
};

// `size` int32 or int64, contiguous.
class IndexSpan {
 public:
  constexpr IndexSpan() = default;
  constexpr IndexSpan(IndexPointer data, size_t size) : data_(data), size_(size) {}
  // From anything that converts to a span of either type: spans, vectors, arrays.
  template <typename Range>
  requires std::convertible_to<const Range&, std::span<const int32_t>>
  constexpr IndexSpan(const Range& range)  // NOLINT(google-explicit-constructor)
      : IndexSpan(std::span<const int32_t>(range)) {}
  template <typename Range>
  requires std::convertible_to<const Range&, std::span<const int64_t>>
  constexpr IndexSpan(const Range& range)  // NOLINT(google-explicit-constructor)
      : IndexSpan(std::span<const int64_t>(range)) {}
  constexpr IndexSpan(std::span<const int32_t> x) : data_(x.data()), size_(x.size()) {}  // NOLINT
  constexpr IndexSpan(std::span<const int64_t> x) : data_(x.data()), size_(x.size()) {}  // NOLINT

  constexpr const void* data() const { return data_.data(); }
  constexpr size_t size() const { return size_; }
  constexpr bool empty() const { return size_ == 0; }
  constexpr int64_t size_bytes() const {
    return static_cast<int64_t>(size_) * data_.element_size();
  }
  int64_t operator[](size_t i) const { return data_[static_cast<int64_t>(i)]; }
  int64_t front() const { return (*this)[0]; }
  int64_t back() const { return (*this)[size_ - 1]; }

 private:
  IndexPointer data_;
  size_t size_ = 0;
};

}  // namespace riffle
