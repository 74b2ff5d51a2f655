// The subcommands. Each Add function registers its options on `parent`; the command runs from
// CLI11's callback and reports failure by throwing.
#pragma once

#include <CLI/CLI.hpp>

namespace riffle::cli {

void AddGenerateCommand(CLI::App& parent);
void AddTopKCommand(CLI::App& parent);
void AddPlanCommand(CLI::App& parent);
void AddInfoCommand(CLI::App& parent);
void AddMakeLogitsCommand(CLI::App& parent);
void AddLlamaCommand(CLI::App& parent);
void AddBenchTopKCommand(CLI::App& bench);
void AddBenchAttentionCommand(CLI::App& bench);
void AddBenchLinearCommand(CLI::App& bench);
void AddBenchSampleCommand(CLI::App& bench);
void AddBenchSparseCommand(CLI::App& bench);
void AddBenchWriteCommand(CLI::App& bench);

}  // namespace riffle::cli
