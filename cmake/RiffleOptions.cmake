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
  # A program with debug information and a sanitizer is 100 MB, and there are a hundred of them: a
  # link takes 1.1 s of processor time by GNU ld, 0.5 by gold and 0.25 by lld.
  foreach(linker lld gold)
    find_program(RIFFLE_LINKER_${linker} ld.${linker})
    mark_as_advanced(RIFFLE_LINKER_${linker})
    if(RIFFLE_LINKER_${linker})
      add_link_options(-fuse-ld=${linker})
      break()
    endif()
  endforeach()
endif()
# HWY_DASSERT, which states the preconditions of kernels, is live in unoptimised builds and under
# sanitizers by itself; this makes it live in an optimised build too.
if(RIFFLE_ASSERTIONS)
  add_compile_definitions(HWY_IS_DEBUG_BUILD=1)
endif()
