// The kernels of the indexer.
#pragma once

#include "sparse/indexer_args.h"

namespace riffle::sparse {

struct IndexerKernels {
  // Writes the scores of an item's queries and keys, and -inf to columns of [item.begin, item.end)
  // that a query does not see.
  void (*logits)(const IndexerArgs& args, const IndexerItem& item, const IndexLogitsOut& out,
                 const ScoreScratch& layout, uint8_t* scratch);
  // Scores an item and keeps the candidates for the answer: in `kept`, or, where that is null, it
  // writes the answers of the item's queries, which are then of this item alone.
  void (*search)(const IndexerArgs& args, const SelectArgs& select, const IndexerItem& item,
                 const KeptLists* kept, const ScoreScratch& layout, const SelectScratch& lists,
                 uint8_t* scratch);
  // Merges what the `splits` items of a query's group left and writes the answer. `item` is the
  // number of the first one.
  void (*finish)(const IndexerArgs& args, const SelectArgs& select, int64_t token, int query,
                 int64_t item, int64_t splits, const KeptLists& kept, const SelectScratch& lists,
                 uint8_t* scratch);
  // Writes the answer of a query of which nothing need be scored: its forced members and `count`
  // more blocks, which are all.
  void (*write_all)(const IndexerArgs& args, const SelectArgs& select, int64_t token,
                    int64_t count);
};

// The kernels for the products that a call is made of: bf16 pairs only on targets that have them.
bool HasBF16Product();
const IndexerKernels& GetIndexerKernels(Product product);

}  // namespace riffle::sparse
