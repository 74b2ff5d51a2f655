// Runs a checked call of top-k.
#pragma once

#include "topk/topk_batch.h"

namespace riffle::topk {

void RunTopK(const TopKBatch& batch);

}  // namespace riffle::topk
