#include "kv_cache_history.h"

#include <algorithm>
#include <utility>

#include "testing/distributions.h"

namespace riffle::test {
History::History(const KvCacheOptions& options, uint64_t seed)
    : options_(options), cache_(options), rng_(seed) {}

void History::Step() {
  const int64_t die = rng_.Below(32);
  if (die < 2) return Create();
  if (die < 6) return Fork();
  if (die < 9) return Truncate();
  if (die < 11) return Free();
  if (die < 15) return Extend();
  if (die < 23) return Write();
  if (die < 26) return SetBlockKeys();
  if (die < 28) return CreateFromKeys();
  if (die < 29) return SwapOut();
  if (die < 31) return SwapIn();
  Misuse();
}

int64_t History::Live() const {
  std::set<const Page*> live;
  for (const auto& [id, sequence] : model_) {
    for (const auto& page : sequence.pages) live.insert(page.get());
  }
  return static_cast<int64_t>(live.size());
}

std::vector<int64_t> History::Ids(bool swapped_out) const {
  std::vector<int64_t> ids;
  for (const auto& [id, sequence] : model_) {
    if (sequence.is_swapped_out == swapped_out) ids.push_back(id);
  }
  return ids;
}

History::PagePointer History::Take() {
  if (Live() + static_cast<int64_t>(given_up_.size()) == options_.pages) {
    keyed_.erase(given_up_.front());
    given_up_.pop_front();
    ++stats_.pages_evicted;
  }
  return std::make_shared<Page>();
}

void History::Release(PagePointer page) {
  if (page.use_count() == 1 && page->key != 0) given_up_.push_back(page->key);
}

void History::ForgetKey(Page& page) {
  if (page.key != 0) keyed_.erase(page.key);
  page.key = 0;
}

void History::Create() {
  if (Full()) return Free();
  const int64_t id = cache_.Create();
  ASSERT_TRUE(ids_seen_.insert(id).second) << "id " << id << " came twice";
  model_[id].stamps.resize(static_cast<size_t>(options_.layers));
}

void History::Fork() {
  if (Ids().empty() || Full()) return Create();
  const int64_t parent = rng_.Pick(Ids());
  const int64_t id = cache_.Fork(parent);
  ASSERT_TRUE(ids_seen_.insert(id).second) << "id " << id << " came twice";
  model_[id] = model_[parent];
  model_[id].safe_from = model_[parent].safe_from = model_[parent].length;
}

void History::Free() {
  if (model_.empty()) return Create();
  const bool swapped_out = Ids().empty() || (!Ids(true).empty() && rng_.OneIn(4));
  const int64_t id = rng_.Pick(Ids(swapped_out));
  cache_.Free(id);
  auto& pages = model_[id].pages;
  for (; !pages.empty(); pages.pop_back()) Release(std::move(pages.back()));
  model_.erase(id);
  Refused(Code::kBadSequence, [&] { cache_.Free(id); });
}

void History::Truncate() {
  if (Ids().empty()) return Create();
  const int64_t id = rng_.Pick(Ids());
  Sequence& sequence = model_[id];
  const int64_t length = rng_.Between(0, sequence.length);
  cache_.Truncate(id, length);
  sequence.length = length;
  sequence.safe_from = std::min(sequence.safe_from, length);
  const auto keep = static_cast<size_t>((length + options_.page_size - 1) / options_.page_size);
  for (; sequence.pages.size() > keep; sequence.pages.pop_back()) {
    Release(std::move(sequence.pages.back()));
  }
  for (auto& stamps : sequence.stamps) stamps.resize(static_cast<size_t>(length));
}

void History::Extend() {
  if (Ids().empty()) return Create();
  const int64_t id = rng_.Pick(Ids());
  Sequence& sequence = model_[id];
  const int64_t tokens = rng_.Below(3 * options_.page_size + 1);
  // A page for every position that is the first of one, and the copy.
  int64_t need = 0;
  for (int64_t p = sequence.length; p < sequence.length + tokens; ++p) {
    need += p % options_.page_size == 0;
  }
  const bool into_last = tokens > 0 && sequence.length % options_.page_size != 0;
  const bool copy = into_last && sequence.pages.back().use_count() > 1;
  need += copy;
  if (need > Unused()) {
    ++refused_;
    return Refused(Code::kOutOfPages, [&] { cache_.Extend(id, tokens); });
  }
  cache_.Extend(id, tokens);
  if (copy) {
    sequence.pages.back() = Take();
    ++stats_.pages_copied;
  } else if (into_last) {
    ForgetKey(*sequence.pages.back());
  }
  sequence.length += tokens;
  while (static_cast<int64_t>(sequence.pages.size()) * options_.page_size < sequence.length) {
    sequence.pages.push_back(Take());
  }
  for (auto& stamps : sequence.stamps) stamps.resize(static_cast<size_t>(sequence.length), 0);
}

History::Rows History::MakeRows(bool values, int64_t tokens, uint64_t stamp) {
  constexpr DType kSources[] = {DType::kF32, DType::kF16, DType::kBF16};
  const int64_t heads = options_.kv_heads;
  const int64_t d = Dim(values);
  Rows rows;
  HeadsView& view = rows.view;
  view.dtype = rng_.Pick(kSources);
  view.tokens = tokens;
  view.heads = heads;
  view.head_dim = d;
  const bool heads_outer = rng_.OneIn(3), backwards = rng_.OneIn(3);
  view.token_stride = heads_outer ? d + 1 : heads * d;
  view.head_stride = heads_outer ? std::max<int64_t>(tokens, 1) * (d + 1) : d;
  const int64_t size = static_cast<int64_t>(SizeOf(view.dtype));
  rows.memory.resize(static_cast<size_t>((tokens + 1) * heads * (d + 1) * size + 1));
  uint8_t* data = rows.memory.data() + 1;  // aligned to nothing
  if (backwards && tokens > 0) {
    data += (tokens - 1) * view.token_stride * size;
    view.token_stride = -view.token_stride;
  }
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t i = 0; i < d; ++i) {
        const float value = ValueOf(stamp + static_cast<uint64_t>(t), values, h, i);
        Store(view.dtype, Encode(view.dtype, value),
              data + (t * view.token_stride + h * view.head_stride + i) * size);
      }
    }
  }
  view.data = data;
  return rows;
}

void History::Write() {
  if (Ids().empty()) return Create();
  const int64_t id = rng_.Pick(Ids());
  Sequence& sequence = model_[id];
  const int64_t first = rng_.Between(0, sequence.length);
  const int64_t tokens = rng_.Below(std::min(sequence.length - first, 2 * options_.page_size) + 1);
  const int64_t layer = rng_.Below(options_.layers);
  const uint64_t stamp = stamp_ + 1;
  stamp_ += static_cast<uint64_t>(tokens);
  const Rows keys = MakeRows(false, tokens, stamp), values = MakeRows(true, tokens, stamp);

  const int64_t first_page = first / options_.page_size;
  const int64_t end_page = tokens == 0 ? first_page : (first + tokens - 1) / options_.page_size + 1;
  int64_t need = 0;
  for (int64_t p = first_page; p < end_page; ++p) {
    need += sequence.pages[static_cast<size_t>(p)].use_count() > 1;
  }
  if (first >= sequence.safe_from) {
    ASSERT_EQ(need, 0) << "positions that Extend reserved";
  }
  const auto write = [&] { cache_.Write(layer, id, first, keys.view, values.view); };
  if (need > Unused()) {
    ++refused_;
    return Refused(Code::kOutOfPages, write);
  }
  write();
  stats_.pages_copied += need;
  for (int64_t p = first_page; p < end_page; ++p) {
    PagePointer& page = sequence.pages[static_cast<size_t>(p)];
    if (page.use_count() > 1) {
      page = Take();
    } else {
      ForgetKey(*page);
    }
  }
  for (int64_t t = 0; t < tokens; ++t) {
    sequence.stamps[static_cast<size_t>(layer)][static_cast<size_t>(first + t)] =
        stamp + static_cast<uint64_t>(t);
  }
}

// A key for each full page, made of its place and its stamps.
std::vector<BlockKey> History::KeysOf(const Sequence& sequence) const {
  std::vector<BlockKey> keys;
  Key key = 0;
  for (int64_t p = 0; p < sequence.length; ++p) {
    if (p % options_.page_size == 0) key = Rng(static_cast<uint64_t>(p)).Next();
    for (const auto& stamps : sequence.stamps) {
      key = Rng(key ^ stamps[static_cast<size_t>(p)]).Next();
    }
    if ((p + 1) % options_.page_size == 0) keys.push_back(Wide(key));
  }
  return keys;
}

void History::SetBlockKeys() {
  if (Ids().empty()) return Create();
  const int64_t id = rng_.Pick(Ids());
  Sequence& sequence = model_[id];
  std::vector<BlockKey> keys = KeysOf(sequence);
  keys.resize(static_cast<size_t>(rng_.Between(0, static_cast<int64_t>(keys.size()))));
  cache_.SetBlockKeys(id, keys);
  for (size_t i = 0; i < keys.size(); ++i) {
    Page& page = *sequence.pages[i];
    const Key key = keys[i].words[0];
    ASSERT_TRUE(page.key == 0 || page.key == key) << "the model's keys contradict each other";
    if (keyed_.contains(key)) continue;
    page.key = key;
    keyed_[key].page = sequence.pages[i];
    keyed_[key].place = i;
    for (const auto& stamps : sequence.stamps) {
      const auto begin = stamps.begin() + static_cast<int64_t>(i) * options_.page_size;
      keyed_[key].stamps.emplace_back(begin, begin + options_.page_size);
    }
  }
  const auto known = static_cast<int64_t>(keys.size()) * options_.page_size;
  sequence.safe_from = std::max(sequence.safe_from, known);
}

void History::CreateFromKeys() {
  if (Full() || Ids().empty()) return Free();
  // Of a sequence that there is, or of pages that have lost theirs; with something unknown behind.
  std::vector<BlockKey> keys = KeysOf(model_[rng_.Pick(Ids(!Ids(true).empty() && rng_.OneIn(2)))]);
  for (const auto& [key, keyed] : keyed_) {
    if (keys.empty() && keyed.place == 0) keys.push_back(Wide(key));
  }
  keys.push_back(Wide(12345));
  size_t found = 0;
  while (keyed_.contains(keys[found].words[0])) ++found;
  const auto length = static_cast<int64_t>(found) * options_.page_size;
  EXPECT_EQ(cache_.Lookup(keys), length);
  const int64_t id = cache_.Create(keys);
  ASSERT_TRUE(ids_seen_.insert(id).second) << "id " << id << " came twice";
  stats_.blocks_wanted += static_cast<int64_t>(keys.size());
  stats_.blocks_found += static_cast<int64_t>(found);
  Sequence& sequence = model_[id];
  sequence.length = sequence.safe_from = length;
  sequence.stamps.resize(static_cast<size_t>(options_.layers));
  for (size_t i = 0; i < found; ++i) {
    Keyed& keyed = keyed_[keys[i].words[0]];
    PagePointer page = keyed.page.lock();
    if (page == nullptr) {
      page = std::make_shared<Page>(Page{keys[i].words[0]});
      keyed.page = page;
      given_up_.remove(page->key);
    }
    sequence.pages.push_back(page);
    for (size_t layer = 0; layer < sequence.stamps.size(); ++layer) {
      sequence.stamps[layer].insert(sequence.stamps[layer].end(), keyed.stamps[layer].begin(),
                                    keyed.stamps[layer].end());
    }
  }
}

void History::SwapOut() {
  if (Ids().empty()) return Create();
  const int64_t id = rng_.Pick(Ids());
  Sequence& sequence = model_[id];
  sequence.image.assign(static_cast<size_t>(cache_.SwapBytes(id)), 0xa5);
  cache_.SwapOut(id, sequence.image);
  sequence.is_swapped_out = true;
  stats_.pages_swapped_out += static_cast<int64_t>(sequence.pages.size());
  for (; !sequence.pages.empty(); sequence.pages.pop_back()) {
    Release(std::move(sequence.pages.back()));
  }
  EXPECT_EQ(cache_.Length(id), sequence.length);
}

void History::SwapIn() {
  if (Ids(true).empty()) return SwapOut();
  const int64_t id = rng_.Pick(Ids(true));
  Sequence& sequence = model_[id];
  const int64_t pages = (sequence.length + options_.page_size - 1) / options_.page_size;
  if (pages > Unused()) {
    ++refused_;
    return Refused(Code::kOutOfPages, [&] { cache_.SwapIn(id, sequence.image); });
  }
  cache_.SwapIn(id, sequence.image);
  sequence.is_swapped_out = false;
  sequence.safe_from = 0;  // all pages are its own
  stats_.pages_swapped_in += pages;
  for (int64_t i = 0; i < pages; ++i) sequence.pages.push_back(Take());
}

}  // namespace riffle::test
