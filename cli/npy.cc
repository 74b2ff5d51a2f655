#include "cli/npy.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>

#include "cli/failure.h"
#include "cli/npy_header.h"
#include "engine/printable.h"

namespace riffle::cli {
namespace {

using engine::Quote;

class FileDescriptor {
 public:
  explicit FileDescriptor(int fd) : fd_(fd) {}
  ~FileDescriptor() { close(fd_); }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

// The element type of a file. If it is unknown, throws an error that says what would help.
DType ResolveDType(const std::string& descr, std::optional<DType> wanted, const std::string& path) {
  if (descr.starts_with('>')) {
    std::string native = descr;
    native[0] = '<';
    FailInput("{}: big-endian elements ({}); convert with x.astype({})", path, Quote(descr),
              Quote(native));
  }
  if (descr == "|O") {
    FailInput("{}: Python objects ('|O'); save a float32 array: numpy.save(path, x.astype('<f4'))",
              path);
  }
  std::optional<DType> stored;
  if (descr == "<f4") {
    stored = DType::kF32;
  } else if (descr == "<f2") {
    stored = DType::kF16;
  } else if (descr == "<u2" || descr == "|V2" || descr == "<V2") {
    if (!wanted.has_value()) {
      FailInput("{}: 16-bit words ({}) of unknown meaning; pass --dtype bf16 if they are bfloat16",
                path, Quote(descr));
    }
    stored = DType::kBF16;
  } else {
    FailInput(
        "{}: elements of type {}, but float32 ('<f4'), float16 ('<f2') and bfloat16 stored "
        "as uint16 ('<u2') are read; convert with x.astype('<f4')",
        path, Quote(descr));
  }
  if (wanted.has_value() && *wanted != *stored) {
    FailInput("{}: --dtype {}, but the file holds {}; leave --dtype out, or convert the array",
              path, Name(*wanted), Quote(descr));
  }
  return *stored;
}

// The number of elements of an array; checks each dimension against what a file can hold.
int64_t CountElements(std::span<const int64_t> shape, const std::string& path) {
  int64_t count = 1;
  bool overflow = false;
  for (const int64_t dimension : shape) {
    if (dimension == 0) {
      return 0;
    }
    overflow = overflow || __builtin_mul_overflow(count, dimension, &count);
  }
  if (overflow || count > INT64_MAX / 8) {
    FailInput("{}: shape {} has more elements than any file; save it again with numpy.save", path,
              FormatShape(shape));
  }
  return count;
}

}  // namespace

NpyMatrix::NpyMatrix(const std::string& path, std::optional<DType> dtype) {
  // Without O_NONBLOCK, opening a named pipe would wait instead of failing.
  const int opened = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (opened < 0) {
    FailInput("{}: cannot open: {}", path, std::strerror(errno));
  }
  const FileDescriptor fd(opened);
  struct stat status;
  if (fstat(fd.get(), &status) != 0) {
    FailInput("{}: cannot stat: {}", path, std::strerror(errno));
  }
  if (!S_ISREG(status.st_mode)) {
    FailInput("{}: not a regular file; it is memory-mapped, so save it to disk first", path);
  }
  if (status.st_size == 0) {
    FailInput("{}: the file is empty; write it with numpy.save", path);
  }
  device_ = status.st_dev;
  inode_ = status.st_ino;
  mapped_bytes_ = static_cast<size_t>(status.st_size);
  mapping_ = mmap(nullptr, mapped_bytes_, PROT_READ, MAP_PRIVATE, fd.get(), 0);
  if (mapping_ == MAP_FAILED) {
    FailRun("{}: cannot map {} bytes: {}", path, mapped_bytes_, std::strerror(errno));
  }
  mapped_.emplace(path, mapping_, mapped_bytes_);
  try {
    Interpret(path, dtype);
  } catch (...) {
    munmap(mapping_, mapped_bytes_);
    throw;
  }
  madvise(mapping_, mapped_bytes_, MADV_WILLNEED);
}

void NpyMatrix::Interpret(const std::string& path, std::optional<DType> dtype) {
  const std::span<const uint8_t> file(static_cast<const uint8_t*>(mapping_), mapped_bytes_);
  const NpyHeader header = ParseNpyHeader(file, path);
  view_.dtype = ResolveDType(header.descr, dtype, path);
  if (header.shape.empty()) {
    FailInput("{}: a single number (shape ()); rows need at least one axis: x.reshape(1, -1)",
              path);
  }
  if (header.fortran_order && header.shape.size() > 1) {
    FailInput(
        "{}: Fortran order; rows must be contiguous: numpy.save(path, "
        "numpy.ascontiguousarray(x))",
        path);
  }
  const int64_t elements = CountElements(header.shape, path);
  const size_t needed = static_cast<size_t>(elements) * SizeOf(view_.dtype);
  const size_t present = mapped_bytes_ - header.data_offset;
  if (present < needed) {
    FailInput("{}: truncated: shape {} of {} needs {} bytes of data and {} follow the header", path,
              FormatShape(header.shape), Name(view_.dtype), needed, present);
  }
  if (present > needed) {
    FailInput(
        "{}: shape {} of {} needs {} bytes of data but {} follow the header; save one array "
        "to a file",
        path, FormatShape(header.shape), Name(view_.dtype), needed, present);
  }
  const int64_t cols = header.shape.back();
  if (cols == 0) {
    FailInput("{}: shape {} has empty rows; a row needs at least one element", path,
              FormatShape(header.shape));
  }
  shape_ = header.shape;
  view_.data = file.data() + header.data_offset;
  view_.rows = elements / cols;
  view_.cols = cols;
  view_.row_stride = cols;
}

NpyMatrix::~NpyMatrix() {
  mapped_.reset();
  munmap(mapping_, mapped_bytes_);
}

size_t NpyMatrix::bytes() const {
  return static_cast<size_t>(view_.rows * view_.cols) * SizeOf(view_.dtype);
}

bool NpyMatrix::IsFile(const std::string& path) const {
  struct stat status;
  return stat(path.c_str(), &status) == 0 && status.st_dev == device_ && status.st_ino == inode_;
}

const char* NpyDescr(DType dtype) {
  return dtype == DType::kF32 ? "<f4" : dtype == DType::kF16 ? "<f2" : "<u2";
}

void WriteNpy(const std::string& path, const char* descr, std::span<const int64_t> shape,
              std::span<const uint8_t> data) {
  constexpr size_t kPrefix = 10;  // magic, version, length
  constexpr size_t kAlignment = 64;
  std::string dict = fmt::format("{{'descr': '{}', 'fortran_order': False, 'shape': {}, }}", descr,
                                 FormatShape(shape));
  dict.append(kAlignment - 1 - (kPrefix + dict.size()) % kAlignment, ' ');
  dict += '\n';
  std::string header("\x93NUMPY\x01\x00", 8);
  header += static_cast<char>(dict.size() & 0xff);
  header += static_cast<char>(dict.size() >> 8);
  header += dict;

  struct Closer {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  std::unique_ptr<std::FILE, Closer> file(std::fopen(path.c_str(), "wb"));
  if (file == nullptr) {
    FailRun("{}: cannot write: {}", path, std::strerror(errno));
  }
  const bool written = std::fwrite(header.data(), 1, header.size(), file.get()) == header.size() &&
                       std::fwrite(data.data(), 1, data.size(), file.get()) == data.size();
  if (!written || std::fclose(file.release()) != 0) {
    FailRun("{}: writing failed: {}", path, std::strerror(errno));
  }
}

}  // namespace riffle::cli
