// Any bytes as a .npy file: refused with a BadInput that names the file, or read whole, to the last
// element. What was read is written and read again, and must be the same array.
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cli/failure.h"
#include "cli/npy.h"
#include "cli/npy_header.h"

namespace riffle::cli {
namespace {

void Expect(bool ok) {
  if (!ok) std::abort();
}

// A file in memory. Its path opens it as any other regular file.
class MemoryFile {
 public:
  MemoryFile() : fd_(memfd_create("fuzz", MFD_CLOEXEC)) { Expect(fd_ >= 0); }
  ~MemoryFile() { close(fd_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  std::string path() const { return fmt::format("/proc/self/fd/{}", fd_); }
  void Write(std::span<const uint8_t> bytes) {
    Expect(ftruncate(fd_, 0) == 0);
    Expect(pwrite(fd_, bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(bytes.size()));
  }

 private:
  int fd_;
};

// f() has an answer or throws a BadInput whose text names the file, is short and is printable.
template <typename F>
bool Succeeds(const std::string& path, const F& f) {
  try {
    f();
    return true;
  } catch (const BadInput& error) {
    const std::string text = error.what();
    Expect(text.starts_with(path + ":"));
    Expect(text.size() < path.size() + 2500);  // a shape of 64 axes is the longest thing in it
    Expect(std::ranges::all_of(text, [](char c) { return c >= ' ' && c <= '~'; }));
    return false;
  }
}

std::vector<uint8_t> Elements(const NpyMatrix& matrix) {
  const auto* data = static_cast<const uint8_t*>(matrix.view().data);
  return {data, data + matrix.bytes()};
}

void CheckMatrix(const NpyMatrix& matrix, const NpyHeader& header, std::span<const uint8_t> file) {
  const MatrixView& x = matrix.view();
  Expect(std::ranges::equal(matrix.shape(), header.shape));
  __int128 elements = 1;
  for (const int64_t length : header.shape) {
    Expect(length >= 0);
    elements *= length;
  }
  Expect(elements == static_cast<__int128>(x.rows) * x.cols && x.cols == header.shape.back());
  Expect(x.row_stride == x.cols);
  Expect(header.data_offset + matrix.bytes() == file.size());
  const std::vector<uint8_t> read = Elements(matrix);
  Expect(std::ranges::equal(read, file.subspan(header.data_offset)));

  MemoryFile again;
  WriteNpy(again.path(), NpyDescr(x.dtype), matrix.shape(), read);
  const NpyMatrix second(again.path(), x.dtype);
  Expect(std::ranges::equal(second.shape(), matrix.shape()));
  Expect(second.view().dtype == x.dtype && Elements(second) == read);
}

void ReadAs(const MemoryFile& input, std::optional<DType> dtype, const NpyHeader& header,
            std::span<const uint8_t> file) {
  Succeeds(input.path(), [&] { CheckMatrix(NpyMatrix(input.path(), dtype), header, file); });
}

}  // namespace
}  // namespace riffle::cli

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace riffle::cli;
  // A copy in an allocation of its own, so that ASan reports a read past its end.
  const std::vector<uint8_t> file(data, data + size);
  NpyHeader header;
  const bool parsed = Succeeds("fuzz.npy", [&] { header = ParseNpyHeader(file, "fuzz.npy"); });
  MemoryFile input;
  input.Write(file);
  if (!parsed) {
    Expect(!Succeeds(input.path(), [&] { NpyMatrix(input.path(), std::nullopt); }));
    return 0;
  }
  Expect(header.data_offset <= file.size());
  ReadAs(input, std::nullopt, header, file);
  for (const riffle::DType dtype :
       {riffle::DType::kF32, riffle::DType::kF16, riffle::DType::kBF16}) {
    ReadAs(input, dtype, header, file);
  }
  return 0;
}
