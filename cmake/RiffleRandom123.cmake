# Random123's headers (counter-based generators): those of a source distribution, else installed ones
# (Debian: librandom123-dev), else the upstream tag. Nothing of them is seen from outside of the
# library.
find_path(RIFFLE_RANDOM123_INCLUDE_DIR Random123/philox.h
          HINTS ${PROJECT_SOURCE_DIR}/.deps/random123/include
          DOC "Where Random123/philox.h is")
if(NOT RIFFLE_RANDOM123_INCLUDE_DIR)
  message(STATUS "riffle: fetching Random123 1.14.0")
  include(FetchContent)
  FetchContent_Declare(random123 GIT_REPOSITORY https://github.com/DEShawResearch/random123.git
                       GIT_TAG v1.14.0 GIT_SHALLOW ON SOURCE_SUBDIR none)
  FetchContent_MakeAvailable(random123)
  set(RIFFLE_RANDOM123_INCLUDE_DIR ${random123_SOURCE_DIR}/include)
endif()

# For the files of the room that draws, not for all: the commands of the others are then the same
# wherever the headers are, and ccache has their objects.
function(riffle_use_random123 target)
  if(RIFFLE_RANDOM123_INCLUDE_DIR IN_LIST CMAKE_CXX_IMPLICIT_INCLUDE_DIRECTORIES)
    return()
  endif()
  get_target_property(sources ${target} SOURCES)
  list(FILTER sources INCLUDE REGEX "^src/sampling/")
  set_source_files_properties(${sources} PROPERTIES
    COMPILE_OPTIONS "-isystem;${RIFFLE_RANDOM123_INCLUDE_DIR}")
endfunction()
