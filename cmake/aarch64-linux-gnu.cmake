# Toolchain: compiles for 64-bit ARM on Debian's cross compiler (g++-aarch64-linux-gnu) and runs
# programs under qemu-user.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64 -L /usr/aarch64-linux-gnu)
# Of packages whose headers alone are used, those of the machine that builds.
set(fmt_DIR /usr/lib/${CMAKE_HOST_SYSTEM_PROCESSOR}-linux-gnu/cmake/fmt)
# Libraries that Debian's cross compiler does not bring: scripts/arm64_libraries.sh.
list(APPEND CMAKE_LIBRARY_PATH ${CMAKE_CURRENT_LIST_DIR}/../.deps/arm64/usr/lib/aarch64-linux-gnu)
