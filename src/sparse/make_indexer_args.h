// The kernels' view of a checked call of the indexer.
#pragma once

#include "riffle/indexer.h"
#include "sparse/indexer_args.h"
#include "sparse/indexer_plan.h"

namespace riffle::sparse {

// Pre: EnsureTarget, since the target decides the arithmetic of q . k.
IndexerArgs MakeIndexerArgs(const HeadsView& q, const IndexWeights& weights, const IndexKeys& keys,
                            IndexActivation activation, const PlannedIndex& plan);

}  // namespace riffle::sparse
