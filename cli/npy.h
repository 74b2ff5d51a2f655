// Arrays in .npy files: read through a memory mapping, written whole.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cli/mapped_files.h"
#include "riffle/types.h"

namespace riffle::cli {

// A file of float32 ('<f4'), float16 ('<f2') or bfloat16 (16-bit integers '<u2', or '|V2' as
// ml_dtypes writes it) in C order, as a matrix of rows x last axis.
class NpyMatrix {
 public:
  // Reads the file through a mapping. If another process shortens it meanwhile, the system raises
  // SIGBUS, which mapped_files.h turns into an error. `dtype` names the element type where the file
  // cannot: bfloat16. Throws BadInput, naming the path, the fault and the remedy, unless the file
  // is an array as described above and has exactly its size.
  NpyMatrix(const std::string& path, std::optional<DType> dtype);
  ~NpyMatrix();
  NpyMatrix(const NpyMatrix&) = delete;
  NpyMatrix& operator=(const NpyMatrix&) = delete;

  const MatrixView& view() const { return view_; }
  std::span<const int64_t> shape() const { return shape_; }
  size_t bytes() const;

  // Whether `path` names the file that was read.
  bool IsFile(const std::string& path) const;

 private:
  void Interpret(const std::string& path, std::optional<DType> dtype);

  void* mapping_ = nullptr;
  size_t mapped_bytes_ = 0;
  std::optional<MappedFile> mapped_;  // names the file if it becomes shorter meanwhile
  uint64_t device_ = 0;
  uint64_t inode_ = 0;
  std::vector<int64_t> shape_;
  MatrixView view_;
};

// The type string for writing: that of the input, and '<u2' for bfloat16.
const char* NpyDescr(DType dtype);
constexpr const char* kNpyInt32 = "<i4";

// Writes an array in C order, format 1.0. Throws std::runtime_error naming the path.
void WriteNpy(const std::string& path, const char* descr, std::span<const int64_t> shape,
              std::span<const uint8_t> data);

}  // namespace riffle::cli
