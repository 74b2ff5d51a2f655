# Highway 1.2 or newer: an installed one, else the source that scripts/highway.sh brought to
# .deps/highway, else the upstream tag. From source its objects become part of libriffle, so that
# an installed riffle needs no Highway.
set(RIFFLE_HIGHWAY_DIR ${CMAKE_CURRENT_SOURCE_DIR}/.deps/highway CACHE PATH "Highway's source")

find_package(hwy 1.2 CONFIG QUIET)
if(hwy_FOUND)
  message(STATUS "riffle: installed Highway ${hwy_VERSION}")
else()
  set(HWY_ENABLE_CONTRIB OFF CACHE BOOL "" FORCE)
  set(HWY_ENABLE_EXAMPLES OFF CACHE BOOL "" FORCE)
  set(HWY_ENABLE_INSTALL OFF CACHE BOOL "" FORCE)
  set(HWY_ENABLE_TESTS OFF CACHE BOOL "" FORCE)
  set(HWY_FORCE_STATIC_LIBS ON CACHE BOOL "" FORCE)
  set(riffle_position_independent ${CMAKE_POSITION_INDEPENDENT_CODE})
  set(CMAKE_POSITION_INDEPENDENT_CODE ON)
  if(EXISTS ${RIFFLE_HIGHWAY_DIR}/CMakeLists.txt)
    message(STATUS "riffle: Highway's source in ${RIFFLE_HIGHWAY_DIR}")
    add_subdirectory(${RIFFLE_HIGHWAY_DIR} ${CMAKE_BINARY_DIR}/highway EXCLUDE_FROM_ALL SYSTEM)
  else()
    message(STATUS "riffle: fetching Highway 1.2.0")
    include(FetchContent)
    FetchContent_Declare(highway GIT_REPOSITORY https://github.com/google/highway.git
                         GIT_TAG 1.2.0 GIT_SHALLOW ON EXCLUDE_FROM_ALL SYSTEM)
    FetchContent_MakeAvailable(highway)
  endif()
  set(CMAKE_POSITION_INDEPENDENT_CODE ${riffle_position_independent})
  set_target_properties(hwy PROPERTIES CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON)
endif()

# SSSE3 and AVX3_DL are left out: every kernel is compiled once a target, and machines that have
# one of them run the next lower target at nearly the same speed. Of ARM's two targets for NEON the
# one without AES, which no kernel uses, serves every aarch64 CPU; NEON_BF16 stands beside it where
# the compiler has it. SVE is left out: its vectors have no size at compile time, and kernels keep
# vectors in arrays.
#
# Under ThreadSanitizer AVX-512 is left out too: g++ 12 spills a 16-bit mask around the sanitizer's
# calls, then reads 64 bits back (kmovw to the stack, mov from it), and rows come out wrong.
#
# Under every sanitizer SSE4 and AVX3_SPR are left out: instrumented kernels take minutes to compile,
# SSE4 differs from SSE2 in few instructions, and AVX3_SPR from AVX3_ZEN4 in none that kernels use.
set(riffle_disabled_targets "HWY_SSSE3|HWY_AVX3_DL|HWY_NEON|HWY_ALL_SVE")
if(RIFFLE_SANITIZE)
  string(APPEND riffle_disabled_targets "|HWY_SSE4|HWY_AVX3_SPR")
endif()
if(RIFFLE_SANITIZE MATCHES "thread")
  string(APPEND riffle_disabled_targets "|HWY_AVX3|HWY_AVX3_ZEN4")
endif()

# Highway's headers alone: for tests that include the library's own headers.
function(riffle_use_highway_headers target)
  target_compile_definitions(${target} PRIVATE
    "HWY_DISABLED_TARGETS=(${riffle_disabled_targets})")
  if(hwy_FOUND)
    set(highway hwy::hwy)
  else()
    set(highway hwy)
  endif()
  target_include_directories(${target} SYSTEM PRIVATE
    $<BUILD_INTERFACE:$<TARGET_PROPERTY:${highway},INTERFACE_INCLUDE_DIRECTORIES>>)
endfunction()

function(riffle_use_highway target)
  riffle_use_highway_headers(${target})
  if(hwy_FOUND)
    target_link_libraries(${target} PRIVATE hwy::hwy)
  else()
    target_sources(${target} PRIVATE $<TARGET_OBJECTS:hwy>)
  endif()
endfunction()
