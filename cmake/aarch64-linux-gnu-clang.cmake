# Toolchain: compiles for 64-bit ARM by clang 19, on the headers and libraries of Debian's cross g++. It generates
# NEON_BF16, which g++ before 13.2 does not know.
include(${CMAKE_CURRENT_LIST_DIR}/aarch64-linux-gnu.cmake)
set(CMAKE_C_COMPILER clang-19)
set(CMAKE_CXX_COMPILER clang++-19)
set(CMAKE_C_COMPILER_TARGET aarch64-linux-gnu)
set(CMAKE_CXX_COMPILER_TARGET aarch64-linux-gnu)
