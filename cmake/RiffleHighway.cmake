# Highway 1.2 or newer: an installed one, else the source that scripts/highway.sh brought to
# .deps/highway, else the upstream tag.
#
# From source, the few files that Riffle needs become part of libriffle, so that an installed riffle
# needs no Highway. Highway's own CMakeLists.txt is not used: its targets would meet those of a
# project that has a Highway of its own. Nor do the two copies meet in a program: the namespace hwy
# is renamed in this one, or the linker would mix inline functions of two versions.
set(RIFFLE_HIGHWAY_DIR ${PROJECT_SOURCE_DIR}/.deps/highway CACHE PATH "Highway's source")

find_package(hwy 1.2 CONFIG QUIET)
if(hwy_FOUND)
  message(STATUS "riffle: installed Highway ${hwy_VERSION}")
else()
  if(EXISTS ${RIFFLE_HIGHWAY_DIR}/hwy/highway.h)
    message(STATUS "riffle: Highway's source in ${RIFFLE_HIGHWAY_DIR}")
    set(riffle_highway_source ${RIFFLE_HIGHWAY_DIR})
  else()
    message(STATUS "riffle: fetching Highway 1.2.0")
    include(FetchContent)
    FetchContent_Declare(riffle_highway GIT_REPOSITORY https://github.com/google/highway.git
                         GIT_TAG 1.2.0 GIT_SHALLOW ON SOURCE_SUBDIR none)
    FetchContent_MakeAvailable(riffle_highway)
    set(riffle_highway_source ${riffle_highway_SOURCE_DIR})
  endif()
  add_library(riffle_highway OBJECT
    ${riffle_highway_source}/hwy/abort.cc
    ${riffle_highway_source}/hwy/aligned_allocator.cc
    ${riffle_highway_source}/hwy/per_target.cc
    ${riffle_highway_source}/hwy/print.cc
    ${riffle_highway_source}/hwy/targets.cc
    ${riffle_highway_source}/hwy/timer.cc)
  set_target_properties(riffle_highway PROPERTIES POSITION_INDEPENDENT_CODE ON
    CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON)
  target_compile_features(riffle_highway PUBLIC cxx_std_17)
  target_compile_definitions(riffle_highway PUBLIC HWY_STATIC_DEFINE hwy=riffle_hwy)
  target_include_directories(riffle_highway SYSTEM PUBLIC ${riffle_highway_source})
  # How Highway asks Linux for the features of an ARM processor.
  include(CheckIncludeFileCXX)
  check_include_file_cxx(sys/auxv.h riffle_have_sys_auxv_h)
  if(NOT riffle_have_sys_auxv_h)
    target_compile_definitions(riffle_highway PUBLIC TOOLCHAIN_MISS_SYS_AUXV_H)
  endif()
  check_include_file_cxx(asm/hwcap.h riffle_have_asm_hwcap_h)
  if(NOT riffle_have_asm_hwcap_h)
    target_compile_definitions(riffle_highway PUBLIC TOOLCHAIN_MISS_ASM_HWCAP_H)
  endif()
endif()

# SSSE3 and AVX3_DL are left out: every kernel is compiled once a target, and machines that have
# one of them run the next lower target at nearly the same speed. riffle_use_vnni() brings AVX3_DL
# back where it is not so.
#
# Under ThreadSanitizer AVX-512 is left out too: g++ 12 spills a 16-bit mask around the sanitizer's
# calls, then reads 64 bits back (kmovw to the stack, mov from it), and rows come out wrong.
#
# Under every sanitizer SSE4 is left out too, and the one of AVX3_SPR and AVX3_ZEN4 that the building
# machine cannot run: instrumented kernels take minutes to compile, and SSE4 differs from SSE2 in few
# instructions. Highway runs AVX3_ZEN4 on AMD's processors, AVX3_SPR on Intel's.
#
# ARM: SVE is left out, since kernels hold vectors in arrays, whose length SVE does not know when it
# compiles. Of the NEON targets with and without AES, which kernels do not use, the one that the
# compiler's default architecture has stays; NEON_BF16 comes beside it where the compiler knows it.
set(riffle_disabled_targets "HWY_SSSE3|HWY_ALL_SVE")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64|ARM64)$")
  include(CheckCXXSymbolExists)
  check_cxx_symbol_exists(__ARM_FEATURE_AES "cstddef" riffle_arm_has_aes)
  if(riffle_arm_has_aes)
    string(APPEND riffle_disabled_targets "|HWY_NEON_WITHOUT_AES")
  else()
    string(APPEND riffle_disabled_targets "|HWY_NEON")
  endif()
endif()
if(RIFFLE_SANITIZE)
  cmake_host_system_information(RESULT riffle_processor QUERY PROCESSOR_DESCRIPTION)
  string(APPEND riffle_disabled_targets "|HWY_SSE4")
  if(riffle_processor MATCHES "AMD")
    string(APPEND riffle_disabled_targets "|HWY_AVX3_SPR")
  else()
    string(APPEND riffle_disabled_targets "|HWY_AVX3_ZEN4")
  endif()
endif()
if(RIFFLE_SANITIZE MATCHES "thread")
  string(APPEND riffle_disabled_targets "|HWY_AVX3|HWY_AVX3_ZEN4|HWY_AVX3_SPR")
endif()
set(riffle_disabled_targets_with_vnni "${riffle_disabled_targets}")
string(APPEND riffle_disabled_targets "|HWY_AVX3_DL")

# What kernels are made of, for the library, the engine, tests and benchmarks: Highway's headers, its
# targets, and the helpers of src/core and its neighbours, which are headers too. Never installed.
add_library(riffle_simd INTERFACE)
target_compile_definitions(riffle_simd INTERFACE
  "HWY_DISABLED_TARGETS=(${riffle_disabled_targets})")
if(hwy_FOUND)
  set(highway hwy::hwy)
else()
  set(highway riffle_highway)
endif()
target_compile_definitions(riffle_simd INTERFACE
  $<TARGET_PROPERTY:${highway},INTERFACE_COMPILE_DEFINITIONS>)
target_include_directories(riffle_simd SYSTEM INTERFACE
  $<TARGET_PROPERTY:${highway},INTERFACE_INCLUDE_DIRECTORIES>)
target_include_directories(riffle_simd INTERFACE ${CMAKE_CURRENT_SOURCE_DIR}/src)

# For programs that include the library's own headers.
function(riffle_use_highway_headers target)
  target_link_libraries(${target} PRIVATE $<BUILD_INTERFACE:riffle_simd>)
endfunction()

function(riffle_use_highway target)
  riffle_use_highway_headers(${target})
  if(hwy_FOUND)
    target_link_libraries(${target} PRIVATE hwy::hwy)
  else()
    target_sources(${target} PRIVATE $<TARGET_OBJECTS:riffle_highway>)
  endif()
endfunction()

# Source files of the calling folder that are compiled for AVX3_DL too (Ice Lake): those that gain
# by int8 dot products (VNNI) without bf16 ones. Highway makes that target only where it is asked
# for. Options come behind the target's definitions.
function(riffle_use_vnni)
  if(NOT RIFFLE_SANITIZE)
    set_source_files_properties(${ARGN} PROPERTIES COMPILE_OPTIONS
      "-UHWY_DISABLED_TARGETS;-DHWY_DISABLED_TARGETS=(${riffle_disabled_targets_with_vnni});-DHWY_WANT_AVX3_DL")
  endif()
endfunction()
