// Reads the header of a .npy file (numpy/lib/format.py, versions 1.0, 2.0 and 3.0) without trusting
// it: the file may be truncated or malformed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace riffle::cli {

struct NpyHeader {
  std::string descr;  // NumPy's type string, such as "<f4"
  bool fortran_order = false;
  std::vector<int64_t> shape;
  size_t data_offset = 0;  // bytes from the start of the file
};

// `file` is the whole file, of which only the header is read. Throws BadInput that names `path`,
// the fault and the remedy.
NpyHeader ParseNpyHeader(std::span<const uint8_t> file, const std::string& path);

// "(32, 201088)"
std::string FormatShape(std::span<const int64_t> shape);

}  // namespace riffle::cli
