// The kernels of the indexer.
#pragma once

#include "sparse/indexer_args.h"

namespace riffle::sparse {

struct IndexerKernels {
  // Writes the scores of an item's queries and keys, and -inf to columns of [item.begin, item.end)
  // that a query does not see.
  void (*logits)(const IndexerArgs& args, const IndexerItem& item, const IndexLogitsOut& out,
                 const ScoreScratch& layout, uint8_t* scratch);
  // Scores an item and leaves the candidates for the answers in `kept`. If that is null, the item
  // has all keys of its queries, and their answers are written.
  void (*search)(const IndexerArgs& args, const SelectArgs& select, const IndexerItem& item,
                 const SplitCandidates* kept, const ScoreScratch& layout,
                 const SelectScratch& lists, uint8_t* scratch);
  // Merges what the `splits` items of a query's group left and writes the answer. `item` is the
  // index of the first one.
  void (*finish)(const IndexerArgs& args, const SelectArgs& select, int64_t token, int query,
                 int64_t item, int64_t splits, const SplitCandidates& kept,
                 const SelectScratch& lists, uint8_t* scratch);
  // Writes the answer of a query for which nothing needs scores: its forced members and the `count`
  // other blocks that join them.
  void (*write_all)(const IndexerArgs& args, const SelectArgs& select, int64_t token,
                    int64_t count);
};

// The kernels for a product. Pre: kBF16 only on targets that have it (HasBF16Product).
bool HasBF16Product();
const IndexerKernels& GetIndexerKernels(Product product);

}  // namespace riffle::sparse
