// `riffle generate --chat` without prompts: a conversation, a line of stdin a turn.
#pragma once

#include "cli/generate_arguments.h"
#include "cli/generate_model.h"

namespace riffle::cli {

// Until the end of stdin. Where stdin is a terminal, Ctrl-C ends the answer that is being written
// and nothing else. Turns are forgotten from the oldest on when the context is full.
void Chat(const GenerateArguments& arguments, const GenerateModel& model);

}  // namespace riffle::cli
