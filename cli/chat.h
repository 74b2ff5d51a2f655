// `riffle generate --chat` without prompts: a conversation in which each line of stdin is a turn.
#pragma once

#include "cli/generate_arguments.h"
#include "cli/generate_model.h"

namespace riffle::cli {

// Runs until the end of stdin. If stdin is a terminal, Ctrl-C ends only the current answer. When
// the context is full, the oldest turns are forgotten.
void Chat(const GenerateArguments& arguments, const GenerateModel& model);

}  // namespace riffle::cli
