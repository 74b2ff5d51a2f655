#include "testing/buffers.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <stdexcept>

namespace riffle::test {
namespace {

constexpr size_t kRedZone = 256;  // bytes before and after an output

size_t InputBytes(const InputSpec& spec) {
  const int64_t gap = std::abs(spec.row_stride);
  const int64_t elements = spec.rows == 0 ? 0 : spec.n + gap * (spec.rows - 1);
  return static_cast<size_t>(elements) * SizeOf(spec.dtype) + static_cast<size_t>(spec.shift);
}

}  // namespace

GuardedBuffer::GuardedBuffer(size_t bytes, bool at_end) {
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t inner = (bytes + page - 1) / page * page;
  mapped_ = inner + 2 * page;
  void* mapping =
      mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) throw std::runtime_error("mmap failed");
  mapping_ = static_cast<uint8_t*>(mapping);
  data_ = mapping_ + page + (at_end ? inner - bytes : 0);
  if (inner != 0 && mprotect(mapping_ + page, inner, PROT_READ | PROT_WRITE) != 0) {
    throw std::runtime_error("mprotect failed");
  }
}

GuardedBuffer::~GuardedBuffer() { munmap(mapping_, mapped_); }

void GuardedBuffer::MakeReadOnly() {
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  if (mapped_ > 2 * page && mprotect(mapping_ + page, mapped_ - 2 * page, PROT_READ) != 0) {
    throw std::runtime_error("mprotect failed");
  }
}

std::string Describe(const InputSpec& spec) {
  std::ostringstream text;
  text << (spec.raw.empty() ? Name(spec.distribution) : "raw bytes") << ' ' << Name(spec.dtype)
       << " rows=" << spec.rows << " n=" << spec.n << " row_stride=" << spec.row_stride
       << " shift=" << spec.shift << (spec.at_end ? " at_end" : " at_begin")
       << " seed=" << spec.seed;
  return text.str();
}

Input::Input(const InputSpec& spec) : spec_(spec), buffer_(InputBytes(spec), spec.at_end) {
  const auto element = static_cast<int64_t>(SizeOf(spec.dtype));
  uint8_t* bytes = buffer_.data();
  const size_t size = InputBytes(spec);
  // At the end of a page the free bytes lie after the matrix, at its beginning before it.
  uint8_t* origin = bytes + (spec.at_end ? 0 : spec.shift);
  if (spec.row_stride < 0 && spec.rows > 0) origin -= spec.row_stride * (spec.rows - 1) * element;
  for (size_t i = 0; i < size; ++i) {  // 0xffff and 0x7fff: NaN of all dtypes, of either sign
    bytes[i] = ((bytes + i - origin) & 3) == 1 ? 0x7f : 0xff;
  }
  Rng rng(spec.seed);
  size_t at = 0;
  for (int64_t row = 0; row < spec.rows; ++row) {
    uint8_t* begin = origin + row * spec.row_stride * element;
    if (spec.raw.empty()) {
      FillRow(spec.distribution, spec.dtype, spec.n, spec.k, rng, begin);
      continue;
    }
    std::generate_n(begin, spec.n * element, [&] { return spec.raw[at++ % spec.raw.size()]; });
  }
  buffer_.MakeReadOnly();
  view_ = {origin, spec.dtype, spec.rows, spec.n, spec.row_stride};
}

Output::Output(int64_t rows, int64_t cols, int64_t stride, size_t element_bytes, size_t shift)
    : rows_(rows), cols_(cols), stride_(stride), element_bytes_(element_bytes) {
  const auto span = static_cast<size_t>(std::abs(stride) * std::max<int64_t>(rows - 1, 0) + cols);
  bytes_.resize(span * element_bytes + 2 * kRedZone + 64);
  origin_ = kRedZone + shift;
  origin_ += (64 - reinterpret_cast<uintptr_t>(bytes_.data()) % 64) % 64;
  if (stride < 0 && rows > 0) {
    origin_ += static_cast<size_t>(-stride * (rows - 1)) * element_bytes;
  }
  Rng rng(span);
  for (size_t at = 0; at < bytes_.size(); at += sizeof(uint64_t)) {
    const uint64_t noise = rng.Next();
    std::memcpy(bytes_.data() + at, &noise, std::min(sizeof(noise), bytes_.size() - at));
  }
  expected_ = bytes_;
}

uint8_t* Output::Cell(std::vector<uint8_t>& bytes, int64_t row, int64_t col) {
  return bytes.data() + static_cast<int64_t>(origin_) +
         (row * stride_ + col) * static_cast<int64_t>(element_bytes_);
}

void Output::Expect(int64_t row, int64_t col, const void* element) {
  std::memcpy(Cell(expected_, row, col), element, element_bytes_);
}

std::string Output::Difference(const char* name) {
  if (bytes_ == expected_) return "";
  std::ostringstream text;
  std::vector<uint8_t> outside = bytes_;
  for (int64_t row = 0; row < rows_; ++row) {
    for (int64_t col = 0; col < cols_; ++col) {
      const uint8_t* got = Cell(bytes_, row, col);
      const uint8_t* want = Cell(expected_, row, col);
      std::memcpy(Cell(outside, row, col), want, element_bytes_);
      if (std::memcmp(got, want, element_bytes_) != 0 && text.tellp() == 0) {
        uint64_t got_bits = 0;
        uint64_t want_bits = 0;
        std::memcpy(&got_bits, got, element_bytes_);
        std::memcpy(&want_bits, want, element_bytes_);
        text << name << '[' << row << ", " << col << "] = 0x" << std::hex << got_bits
             << ", should be 0x" << want_bits << std::dec << "; ";
      }
    }
  }
  if (outside != expected_) text << "bytes outside of " << name << "'s rows were written";
  return text.str();
}

}  // namespace riffle::test
