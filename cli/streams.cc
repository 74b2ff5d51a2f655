#include "cli/streams.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "cli/failure.h"

namespace riffle::cli {

void OpenStandardStreams() {
  // open() returns the lowest free number, so this fills the numbers in order. Standard output is
  // opened for reading, so that every write to it fails.
  constexpr int kModes[] = {O_RDONLY, O_RDONLY, O_WRONLY};
  for (int stream = STDIN_FILENO; stream <= STDERR_FILENO; ++stream) {
    if (::fcntl(stream, F_GETFD) >= 0 || errno != EBADF) {
      continue;
    }
    const int opened = ::open("/dev/null", kModes[stream]);
    if (opened >= 0 && opened != stream) {
      ::close(opened);
    }
  }
}

void PrintToStderr(std::string_view text) noexcept {
  std::fwrite(text.data(), 1, text.size(), stderr);
  std::fflush(stderr);
}

void FlushOutput() {
  errno = 0;
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) {
    return;
  }
  FailRun("writing to standard output failed{}{}", errno == 0 ? "" : ": ",
          errno == 0 ? "" : std::strerror(errno));
}

}  // namespace riffle::cli
