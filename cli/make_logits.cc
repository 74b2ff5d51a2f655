// riffle make-logits: writes a file to try the other commands on.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/failure.h"
#include "cli/logits.h"
#include "cli/npy.h"
#include "cli/numbers.h"
#include "cli/options.h"
#include "cli/report.h"
#include "engine/printable.h"

namespace riffle::cli {
namespace {

constexpr const char* kDescription = "Writes made-up logits to try the other commands on";

constexpr const char* kDetails =
    "The shape is a language model's: a bias by token frequency, noise, and a few sharp peaks in "
    "each\n"
    "row. The same arguments give the same file on every machine.\n"
    "\n"
    "Examples:\n"
    "  riffle make-logits logits.npy                         32 x 201088, bfloat16 as uint16\n"
    "  riffle make-logits small.npy --rows 2 --vocab 1000 --dtype f32 --seed 7";

struct Arguments {
  std::string file;
  int64_t rows = 32;
  int64_t vocab = 201088;
  uint64_t seed = 1;
  std::string dtype = "bf16";
};

void Run(const Arguments& arguments) {
  const auto dtype = ParseDType(arguments.dtype);
  if (!dtype.has_value()) {
    FailInput("--dtype {} is not f32, f16 or bf16", engine::Quote(arguments.dtype));
  }
  constexpr int64_t kMostElements = int64_t{1} << 40;
  if (arguments.rows < 0 || arguments.vocab < 1 || arguments.vocab > INT32_MAX ||
      arguments.rows > kMostElements / arguments.vocab) {
    FailInput(
        "--rows {} --vocab {}: rows must be at least 0, vocab 1..2147483647, and together at "
        "most 2^40 elements",
        arguments.rows, arguments.vocab);
  }
  const auto bytes = static_cast<size_t>(arguments.rows * arguments.vocab) * SizeOf(*dtype);
  std::vector<uint8_t> data = Allocate<uint8_t>(bytes, "the logits", "give fewer --rows");
  for (int64_t r = 0; r < arguments.rows; ++r) {
    for (int64_t c = 0; c < arguments.vocab; ++c) {
      StoreFloat(MakeLogit(arguments.seed, static_cast<uint64_t>(r), static_cast<uint64_t>(c)),
                 data.data(), *dtype, r * arguments.vocab + c);
    }
  }
  const std::vector<int64_t> shape = {arguments.rows, arguments.vocab};
  WriteNpy(arguments.file, NpyDescr(*dtype), shape, data);
  fmt::print("{}: {} x {} {}{}, {}\n", arguments.file, arguments.rows, arguments.vocab,
             Name(*dtype), *dtype == DType::kBF16 ? " stored as uint16" : "",
             FormatBytes(static_cast<double>(data.size())));
}

}  // namespace

void AddMakeLogitsCommand(CLI::App& parent) {
  CLI::App* command = parent.add_subcommand("make-logits", kDescription);
  auto arguments = std::make_shared<Arguments>();
  Arguments& a = *arguments;
  command->footer(kDetails);
  command->add_option("file", a.file, "the file to write")->required()->type_name("OUT.npy");
  command->add_option("--rows", a.rows, "rows (32)")->type_name("R");
  command->add_option("--vocab", a.vocab, "columns (201088)")->type_name("N");
  command->add_option("--seed", a.seed, "another seed, other numbers (1)")
      ->type_name("S")
      ->check(CheckSeed);
  command->add_option("--dtype", a.dtype, "f32, f16 or bf16 (bf16)")->type_name("TYPE");
  command->callback([arguments] { Run(*arguments); });
}

}  // namespace riffle::cli
