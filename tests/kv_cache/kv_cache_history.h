// A random history of a cache beside a model that is too simple to be wrong: every sequence's
// tokens in a vector of its own, its pages as shared pointers whose counts are the references, and
// the pages that have keys in a map and a list.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <set>
#include <vector>

#include "riffle/error.h"
#include "riffle/kv_cache.h"
#include "testing/rng.h"

namespace riffle::test {

class History {
 public:
  History(const KvCacheOptions& options, uint64_t seed);

  // One random call, of both.
  void Step();

  // Everything that can be seen of the cache, held against the model.
  void Compare();

  int64_t refused() const { return refused_; }  // for want of pages
  const KvCacheStats& expected_stats() const { return stats_; }

 private:
  using Key = uint64_t;
  // What was last written to the positions of a layer; 0: nothing yet, anything may be read.
  using Stamps = std::vector<std::vector<uint64_t>>;

  struct Page {   // its references are those of the shared_ptr
    Key key = 0;  // 0: none
  };
  using PagePointer = std::shared_ptr<Page>;

  struct Sequence {
    Stamps stamps;  // [layer][position]
    std::vector<PagePointer> pages;
    int64_t length = 0;
    int64_t safe_from = 0;  // positions that Extend promised to be writable without a page
    bool is_swapped_out = false;
    std::vector<uint8_t> image;  // then
  };

  struct Keyed {
    std::weak_ptr<Page> page;  // expired: no sequence has it
    Stamps stamps;             // [layer][offset]
    size_t place = 0;          // of the page in sequences
  };

  // A token's rows, alive as long as the view.
  struct Rows {
    HeadsView view;
    std::vector<uint8_t> memory;
  };

  void Create();
  void Fork();
  void Free();
  void Truncate();
  void Extend();
  void Write();
  void SetBlockKeys();
  void CreateFromKeys();
  void SwapOut();
  void SwapIn();
  void Misuse();
  void MisuseOfKeysAndSwaps(int64_t id);

  // What PagePool does.
  PagePointer Take();
  void Release(PagePointer page);
  void ForgetKey(Page& page);

  int64_t Live() const;
  int64_t Unused() const { return options_.pages - Live(); }
  std::vector<int64_t> Ids(bool swapped_out = false) const;
  bool Full() const { return model_.size() >= 9; }
  std::vector<BlockKey> KeysOf(const Sequence& sequence) const;
  // The value of an element written with `stamp`; exact in every dtype of 16 bits or more.
  static float ValueOf(uint64_t stamp, bool values, int64_t head, int64_t i) {
    const uint64_t key = stamp * 1009 + static_cast<uint64_t>((values ? 512 : 0) + head * 64 + i);
    return static_cast<float>(Rng(key).Below(512) - 256);
  }
  int64_t Dim(bool values) const {
    return values && options_.value_dim > 0 ? options_.value_dim : options_.head_dim;
  }
  static BlockKey Wide(Key key) { return {{key, key * 3}}; }
  Rows MakeRows(bool values, int64_t tokens, uint64_t stamp);

  // Runs `call`, which must be refused with `code` and change nothing.
  template <typename F>
  void Refused(Code code, const F& call) {
    const KvBatch before = cache_.Batch(Ids());
    const int64_t reusable = cache_.stats().pages_reusable;
    try {
      call();
      ADD_FAILURE() << "not refused";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), code) << error.what();
    }
    const KvBatch after = cache_.Batch(Ids());
    EXPECT_EQ(before.kv_lens, after.kv_lens);
    EXPECT_EQ(before.page_table, after.page_table);
    EXPECT_EQ(cache_.stats().pages_reusable, reusable);
  }

  void ComparePages();
  void CompareContents();
  void CompareRow(const PagedKv& kv, int64_t number, int64_t offset, uint64_t stamp, bool values);

  const KvCacheOptions options_;
  KvCache cache_;
  Rng rng_;
  std::map<int64_t, Sequence> model_;
  std::map<Key, Keyed> keyed_;
  std::list<Key> given_up_;  // of pages without a sequence, the first to go first
  std::set<int64_t> ids_seen_;
  KvBatch batch_;  // of Ids()
  uint64_t stamp_ = 0;
  int64_t refused_ = 0;
  KvCacheStats stats_;
};

}  // namespace riffle::test
