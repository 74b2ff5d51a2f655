// Where a test finds its files and the programs that it starts. tests/CMakeLists.txt defines each
// for the tests that need it (riffle_test_path), in a source file of its own: only that tiny file
// is compiled anew in another checkout, all others come out of ccache.
#pragma once

namespace riffle::test {

extern const char* const kTestData;         // tests/data
extern const char* const kRuntimeProbe;     // what starts tests/runtime/runtime_probe.cc
extern const char* const kLifetimeProbe;    // what starts tests/runtime/lifetime_probe.cc
extern const char* const kLifetimePluginA;  // two copies of tests/runtime/lifetime_plugin.cc;
extern const char* const kLifetimePluginB;  // only with RIFFLE_LIFETIME_PLUGINS

}  // namespace riffle::test
