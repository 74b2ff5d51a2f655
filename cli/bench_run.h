// The options that every `riffle bench` command has, and the output around its lines.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "cli/roofline.h"
#include "riffle/runtime.h"

namespace riffle::cli {

struct BenchArguments {
  bool quick = false;
  bool json = false;
  std::string only;
  std::string target;
  int threads = 0;
  double min_time = 0;  // seconds per case; 0: the command's default
};

// A command's description, and how long it measures a case.
struct BenchCommand {
  const char* name;
  const char* description;
  const char* details;
  const char* quick;  // help of --quick
  double seconds;
  double quick_seconds;
  int name_width = 12;  // of the table
};

// Throws BadInput: none of these names contains --only.
[[noreturn]] void FailNoCase(const std::string& only, const std::vector<std::string>& names);

// The cases whose names contain `only`. Calls FailNoCase if there are none.
template <typename Case>
std::vector<Case> CasesNamed(const std::string& only, const std::vector<Case>& cases) {
  std::vector<Case> chosen;
  std::vector<std::string> names;
  for (const Case& what : cases) {
    names.push_back(what.name);
    if (what.name.find(only) != std::string::npos) {
      chosen.push_back(what);
    }
  }
  if (chosen.empty()) {
    FailNoCase(only, names);
  }
  return chosen;
}

// Sets the target and the threads that the arguments ask for, and shows the results as they come.
class BenchRun {
 public:
  // Prints the first line, unless JSON is asked for.
  BenchRun(const BenchCommand& command, const BenchArguments& arguments);

  ThreadPool* pool() const { return pool_.get(); }
  double min_seconds() const { return min_seconds_; }
  bool json() const { return json_asked_; }
  void Add(nlohmann::ordered_json line) { json_["lines"].push_back(std::move(line)); }
  // Adds a line to the JSON, `fields` first, or prints it; prints the table's head before the first
  // line.
  void Show(nlohmann::ordered_json fields, const RooflineLine& line);
  void Finish() const;  // prints the JSON, if it was asked for

 private:
  std::unique_ptr<ThreadPool> pool_;
  double min_seconds_;
  bool json_asked_;
  int name_width_;
  int shown_ = 0;
  nlohmann::ordered_json json_;
};

void AddBenchCommand(CLI::App& bench, const BenchCommand& command,
                     std::function<void(const BenchArguments&)> run);

}  // namespace riffle::cli
