// The header of a .npy file (numpy/lib/format.py, versions 1.0, 2.0 and 3.0), read with suspicion:
// the bytes may be cut short, or lie.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace riffle::cli {

struct NpyHeader {
  std::string descr;  // NumPy's type string, "<f4"
  bool fortran_order = false;
  std::vector<int64_t> shape;
  size_t data_offset = 0;  // bytes from the beginning of the file
};

// `file` is the whole file; only its header is read. Throws BadInput that names `path`, what is
// wrong, and what to do.
NpyHeader ParseNpyHeader(std::span<const uint8_t> file, const std::string& path);

// "(32, 201088)"
std::string FormatShape(std::span<const int64_t> shape);

}  // namespace riffle::cli
