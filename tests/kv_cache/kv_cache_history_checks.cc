// Calls that must be refused, and the comparison with the model.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "kv_cache_history.h"
#include "testing/write_kv_reference.h"

namespace riffle::test {

void History::Misuse() {
  Refused(Code::kBadSequence, [&] { cache_.Extend(rng_.Between(-3, 0), 1); });
  if (!Ids(true).empty()) {
    const int64_t gone = rng_.Pick(Ids(true));
    Refused(Code::kBadSequence, [&] { cache_.Extend(gone, 1); });
    Refused(Code::kBadSequence, [&] { (void)cache_.Fork(gone); });
    Refused(Code::kBadSequence, [&] { (void)cache_.Batch(std::vector<int64_t>{gone}); });
    Refused(Code::kBadSequence, [&] { cache_.SwapOut(gone, model_[gone].image); });
  }
  if (Ids().empty()) return;
  const int64_t id = rng_.Pick(Ids());
  const int64_t length = model_[id].length;
  const Rows keys = MakeRows(false, 2, 1), values = MakeRows(true, 2, 1);
  const auto write = [&](int64_t layer, int64_t position) {
    return [&, layer, position] { cache_.Write(layer, id, position, keys.view, values.view); };
  };
  switch (rng_.Below(8)) {
    case 0:
      return Refused(Code::kBadRange, [&] { cache_.Extend(id, -1); });
    case 1:
      return Refused(Code::kBadRange, [&] { cache_.Truncate(id, length + 1); });
    case 2:
      return Refused(Code::kBadRange, write(0, length - 1));
    case 3:
      return Refused(Code::kBadRange, write(options_.layers, 0));
    case 4:
      return Refused(Code::kBadRange, write(0, -1));
    case 5:
    case 6:
      return MisuseOfKeysAndSwaps(id);
    default:
      return Refused(Code::kOutOfPages, [&] {
        cache_.Extend(id, rng_.OneIn(2) ? INT64_MAX : (options_.pages + 1) * options_.page_size);
      });
  }
}

void History::MisuseOfKeysAndSwaps(int64_t id) {
  const Sequence& sequence = model_[id];
  std::vector<BlockKey> keys(static_cast<size_t>(sequence.length / options_.page_size) + 1);
  Refused(Code::kBadRange, [&] { cache_.SetBlockKeys(id, keys); });
  const auto keyed = std::find_if(sequence.pages.begin(), sequence.pages.end(),
                                  [](const PagePointer& page) { return page->key != 0; });
  if (keyed != sequence.pages.end() && sequence.length % options_.page_size == 0) {
    keys.pop_back();
    for (size_t i = 0; i < keys.size(); ++i) {
      keys[i] = Wide(sequence.pages[i]->key != 0 ? sequence.pages[i]->key : 777 + i);
    }
    keys[static_cast<size_t>(keyed - sequence.pages.begin())] = Wide(999);
    Refused(Code::kBadOption, [&] { cache_.SetBlockKeys(id, keys); });
  }
  Refused(Code::kBadSequence, [&] { cache_.SwapIn(id, std::vector<uint8_t>(1 << 20)); });
  if (sequence.length > 0) {
    std::vector<uint8_t> short_by_one(static_cast<size_t>(cache_.SwapBytes(id) - 1));
    Refused(Code::kBadShape, [&] { cache_.SwapOut(id, short_by_one); });
    const PagedKv own = cache_.Keys(0);
    auto* const pages = static_cast<uint8_t*>(const_cast<void*>(own.data));
    const std::span<uint8_t> inside(pages, static_cast<size_t>(cache_.SwapBytes(id)));
    Refused(Code::kOverlap, [&] { cache_.SwapOut(id, inside); });
  }
}

void History::Compare() {
  ASSERT_EQ(cache_.sequences(), static_cast<int64_t>(model_.size()));
  ComparePages();
  if (testing::Test::HasFatalFailure()) return;
  CompareContents();
  const KvCacheStats stats = cache_.stats();
  ASSERT_EQ(stats.blocks_wanted, stats_.blocks_wanted);
  ASSERT_EQ(stats.blocks_found, stats_.blocks_found);
  ASSERT_EQ(stats.pages_evicted, stats_.pages_evicted);
  ASSERT_EQ(stats.pages_copied, stats_.pages_copied);
  ASSERT_EQ(stats.pages_swapped_out, stats_.pages_swapped_out);
  ASSERT_EQ(stats.pages_swapped_in, stats_.pages_swapped_in);
  ASSERT_EQ(stats.pages_reusable, static_cast<int64_t>(given_up_.size()));
  for (const auto& [key, keyed] : keyed_) {
    ASSERT_EQ(cache_.Lookup(std::vector<BlockKey>{Wide(key)}), options_.page_size);
  }
}

// Pages of the cache and of the model are the same up to their names.
void History::ComparePages() {
  const std::vector<int64_t> ids = Ids();
  batch_ = cache_.Batch(ids);
  ASSERT_EQ(batch_.kv_lens.size(), ids.size());
  ASSERT_EQ(batch_.page_table.size(), ids.size() * static_cast<size_t>(batch_.max_pages));
  std::map<const Page*, int32_t> names;
  std::set<int32_t> numbers;
  int64_t shared = 0, max_pages = 0;
  for (size_t s = 0; s < ids.size(); ++s) {
    const Sequence& sequence = model_[ids[s]];
    ASSERT_EQ(batch_.kv_lens[s], sequence.length);
    ASSERT_EQ(cache_.Length(ids[s]), sequence.length);
    const int64_t held = static_cast<int64_t>(sequence.pages.size());
    ASSERT_LE(held, batch_.max_pages);
    max_pages = std::max(max_pages, held);
    for (int64_t i = 0; i < batch_.max_pages; ++i) {
      const int32_t number =
          batch_.page_table[s * static_cast<size_t>(batch_.max_pages) + static_cast<size_t>(i)];
      if (i >= held) {
        ASSERT_EQ(number, -1);
        continue;
      }
      ASSERT_TRUE(number >= 0 && number < options_.pages) << number;
      const auto& page = sequence.pages[static_cast<size_t>(i)];
      const auto [name, is_new] = names.emplace(page.get(), number);
      ASSERT_EQ(name->second, number) << "a page shared by the model is not shared";
      if (is_new) {
        ASSERT_TRUE(numbers.insert(number).second) << "page " << number << " shared by chance";
        shared += page.use_count() > 1;
      }
    }
  }
  ASSERT_EQ(batch_.max_pages, max_pages);
  ASSERT_EQ(cache_.pages_used(), static_cast<int64_t>(numbers.size()));
  ASSERT_EQ(cache_.pages_free(), options_.pages - cache_.pages_used());
  ASSERT_EQ(cache_.pages_shared(), shared);
}

void History::CompareContents() {
  const std::vector<int64_t> ids = Ids();
  for (int64_t layer = 0; layer < options_.layers; ++layer) {
    const PagedKv keys = cache_.Keys(layer), values = cache_.Values(layer);
    for (size_t s = 0; s < ids.size(); ++s) {
      const auto& stamps = model_[ids[s]].stamps[static_cast<size_t>(layer)];
      for (size_t p = 0; p < stamps.size(); ++p) {
        if (stamps[p] == 0) continue;
        const size_t page = p / static_cast<size_t>(options_.page_size);
        const int64_t number = batch_.page_table[s * static_cast<size_t>(batch_.max_pages) + page];
        const int64_t offset = static_cast<int64_t>(p) % options_.page_size;
        CompareRow(keys, number, offset, stamps[p], false);
        CompareRow(values, number, offset, stamps[p], true);
        ASSERT_FALSE(testing::Test::HasFatalFailure())
            << "sequence " << ids[s] << " position " << p << " layer " << layer;
      }
    }
  }
}

// Exact in dtypes of 16 bits or more; others are as near as 4 bits can be, which no other stamp is.
void History::CompareRow(const PagedKv& kv, int64_t number, int64_t offset, uint64_t stamp,
                         bool values) {
  const bool is_exact = kv.format == KvFormat::kPlain && SizeOf(kv.dtype) > 1;
  const double bound = is_exact ? 0 : 40;
  for (int64_t h = 0; h < options_.kv_heads; ++h) {
    const std::vector<double> row = DecodeRow(kv, number, offset, h);
    for (int64_t i = 0; i < Dim(values); ++i) {
      ASSERT_LE(std::fabs(row[static_cast<size_t>(i)] - ValueOf(stamp, values, h, i)), bound)
          << (values ? "values" : "keys") << " head " << h << " element " << i;
    }
  }
}

}  // namespace riffle::test
