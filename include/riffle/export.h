// RIFFLE_API marks what a shared libriffle exports: the public API and nothing else. RIFFLE_LOCAL
// hides a nested class of an exported class.
#pragma once

#if defined(_WIN32)
#if defined(RIFFLE_SHARED) && defined(RIFFLE_BUILDING)
#define RIFFLE_API __declspec(dllexport)
#elif defined(RIFFLE_SHARED)
#define RIFFLE_API __declspec(dllimport)
#else
#define RIFFLE_API
#endif
#define RIFFLE_LOCAL
#else
#define RIFFLE_API __attribute__((visibility("default")))
#define RIFFLE_LOCAL __attribute__((visibility("hidden")))
#endif
