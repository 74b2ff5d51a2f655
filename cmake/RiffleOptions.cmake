# Warnings and sanitizers of everything this repository compiles.
add_library(riffle_options INTERFACE)
target_compile_options(riffle_options INTERFACE
  -Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion
  $<$<CXX_COMPILER_ID:GNU>:-Wno-tsan>  # fences in Highway's headers
  # Multiplications and additions are fused where the source says so, never where the compiler
  # likes: the same query must give the same bits through every kernel.
  -ffp-contract=off)
if(RIFFLE_WERROR)
  target_compile_options(riffle_options INTERFACE -Werror)
endif()
if(RIFFLE_SANITIZE)
  add_compile_options(-fsanitize=${RIFFLE_SANITIZE} -fno-sanitize-recover=all
                      -fno-omit-frame-pointer)
  add_link_options(-fsanitize=${RIFFLE_SANITIZE})
endif()
# HWY_DASSERT, which states the preconditions of kernels, is live in unoptimised builds and under
# sanitizers by itself; this makes it live in an optimised build too.
if(RIFFLE_ASSERTIONS)
  add_compile_definitions(HWY_IS_DEBUG_BUILD=1)
endif()
