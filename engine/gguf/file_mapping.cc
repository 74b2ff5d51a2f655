// POSIX, and Windows, which is untested.
#include "engine/gguf/file_mapping.h"

#include <fmt/format.h>

#include <system_error>

#include "engine/gguf/gguf.h"
#include "riffle/error.h"

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>

#include <filesystem>
#else
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#endif

namespace riffle::engine {
namespace {

BadModel Failure(const std::string& path, const std::string& why) {
  return BadModel(fmt::format("{}: {}", path, why));
}

}  // namespace

#if defined(_WIN32)

FileMapping MapFile(const std::string& path) {
  const auto reason = [] {
    return std::system_category().message(static_cast<int>(GetLastError()));
  };
  struct Handle {
    HANDLE value;
    ~Handle() {
      if (value != nullptr && value != INVALID_HANDLE_VALUE) CloseHandle(value);
    }
  };
  const std::filesystem::path name(reinterpret_cast<const char8_t*>(path.c_str()));
  const Handle file{CreateFileW(name.c_str(), GENERIC_READ, FILE_SHARE_READ, nullptr, OPEN_EXISTING,
                                FILE_ATTRIBUTE_NORMAL, nullptr)};
  LARGE_INTEGER size;
  if (file.value == INVALID_HANDLE_VALUE || !GetFileSizeEx(file.value, &size)) {
    throw Failure(path, "cannot be opened: " + reason());
  }
  if (GetFileType(file.value) != FILE_TYPE_DISK) throw Failure(path, "is not a regular file");
  if (size.QuadPart == 0) throw Failure(path, "is empty, not a GGUF file");
  // The view keeps the mapping alive.
  const Handle mapping{CreateFileMappingW(file.value, nullptr, PAGE_READONLY, 0, 0, nullptr)};
  const void* const start =
      mapping.value == nullptr ? nullptr : MapViewOfFile(mapping.value, FILE_MAP_READ, 0, 0, 0);
  if (start == nullptr) throw Failure(path, "cannot be mapped: " + reason());
  return {{start, [](const void* p) { UnmapViewOfFile(p); }},
          {static_cast<const uint8_t*>(start), static_cast<size_t>(size.QuadPart)}};
}

#else

FileMapping MapFile(const std::string& path) {
  struct Descriptor {
    int number;
    ~Descriptor() {
      if (number >= 0) ::close(number);
    }
  };
  const auto text = [](int reason) { return std::generic_category().message(reason); };
  // Without O_NONBLOCK, opening a pipe would wait for a writer.
  const Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  struct ::stat status {};
  if (file.number < 0 || ::fstat(file.number, &status) != 0) {
    throw Failure(path, "cannot be opened: " + text(errno));
  }
  if (!S_ISREG(status.st_mode)) throw Failure(path, "is not a regular file");
  if (status.st_size == 0) throw Failure(path, "is empty, not a GGUF file");
  const auto size = static_cast<size_t>(status.st_size);
  void* const start = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.number, 0);
  if (start == MAP_FAILED) {
    const int reason = errno;
    const BadModel error = Failure(path, "cannot be mapped: " + text(reason));
    if (reason == ENOMEM) throw Error(Code::kOutOfMemory, error.what());
    throw error;
  }
  return {{start, [size](const void* p) { ::munmap(const_cast<void*>(p), size); }},
          {static_cast<const uint8_t*>(start), size}};
}

#endif

}  // namespace riffle::engine
