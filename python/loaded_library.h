// Finds functions of a shared library that the process has already loaded; loads and links nothing.
// macOS and Windows are untested.
#pragma once

#include <string>

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>
#else
#include <dlfcn.h>
#endif

namespace riffle::python {

class LoadedLibrary {
 public:
  // `name` without the system's prefix and suffix: "torch_cpu" is libtorch_cpu.so on Linux.
  explicit LoadedLibrary(const std::string& name)
#if defined(_WIN32)
      : library_(GetModuleHandleA((name + ".dll").c_str()))
#elif defined(__APPLE__)
      : library_(dlopen(("@rpath/lib" + name + ".dylib").c_str(), RTLD_NOW | RTLD_NOLOAD))
#else
      : library_(dlopen(("lib" + name + ".so").c_str(), RTLD_NOW | RTLD_NOLOAD))
#endif
  {
  }

  // Null if the library is not loaded or has no such function.
  void* Find(const char* function) const {
    if (library_ == nullptr) {
      return nullptr;
    }
#if defined(_WIN32)
    return reinterpret_cast<void*>(GetProcAddress(library_, function));
#else
    return dlsym(library_, function);
#endif
  }

 private:
#if defined(_WIN32)
  HMODULE library_;
#else
  void* library_;
#endif
};

}  // namespace riffle::python
