// The version of these headers; riffle::Version() is the library's. The only place that states it:
// CMake and the Python package read it from here.
#pragma once

#define RIFFLE_VERSION_MAJOR 0
#define RIFFLE_VERSION_MINOR 1
#define RIFFLE_VERSION_PATCH 0

// One number, to compare with: #if RIFFLE_VERSION >= RIFFLE_MAKE_VERSION(0, 2, 0).
#define RIFFLE_MAKE_VERSION(major, minor, patch) ((major)*1000000 + (minor)*1000 + (patch))
#define RIFFLE_VERSION \
  RIFFLE_MAKE_VERSION(RIFFLE_VERSION_MAJOR, RIFFLE_VERSION_MINOR, RIFFLE_VERSION_PATCH)
