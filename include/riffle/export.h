// RIFFLE_API marks what a shared libriffle exports: the public API and nothing else.
#pragma once

#if defined(_WIN32)
#if defined(RIFFLE_SHARED) && defined(RIFFLE_BUILDING)
#define RIFFLE_API __declspec(dllexport)
#elif defined(RIFFLE_SHARED)
#define RIFFLE_API __declspec(dllimport)
#else
#define RIFFLE_API
#endif
#else
#define RIFFLE_API __attribute__((visibility("default")))
#endif
