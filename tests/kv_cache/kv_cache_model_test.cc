// Long random histories of a cache beside a model that is too simple to be wrong: every sequence's
// tokens in a vector of its own, and its pages as shared pointers whose counts are the references.
// The pools are small, so a good part of the calls find them full.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <set>

#include "riffle/kv_cache.h"
#include "testing/distributions.h"
#include "testing/kv_cache_check.h"
#include "testing/reference.h"
#include "testing/rng.h"
#include "testing/text.h"

namespace riffle::test {
namespace {

struct Case {
  KvCacheOptions options;
  uint64_t seed = 0;
};

struct ModelPage {};  // its references are those of the shared_ptr

struct ModelSequence {
  // [layer][position], what was last written there; 0: nothing yet, anything may be read
  std::vector<std::vector<uint64_t>> stamps;
  std::vector<std::shared_ptr<ModelPage>> pages;
  int64_t length = 0;
  int64_t safe_from = 0;  // positions that Extend promised to be writable without a page
};

// The value of an element written with `stamp`; exact in every dtype.
float ValueOf(uint64_t stamp, int64_t part, int64_t head, int64_t i) {
  const uint64_t key = stamp * 1009 + static_cast<uint64_t>(part * 512 + head * 64 + i);
  return static_cast<float>(Rng(key).Below(512) - 256);
}

class History {
 public:
  explicit History(const Case& c) : options_(c.options), cache_(c.options), rng_(c.seed) {}

  void Step() {
    const int64_t die = rng_.Below(24);
    if (die < 2) return Create();
    if (die < 6) return Fork();
    if (die < 9) return Truncate();
    if (die < 11) return Free();
    if (die < 15) return Extend();
    if (die < 23) return Write();
    Misuse();
  }

  // Everything that can be seen of the cache, held against the model.
  void Compare();

  int64_t refused() const { return refused_; }  // for want of pages
  int64_t copied() const { return copied_; }    // pages, by Write

 private:
  int64_t Live() const {
    std::set<const ModelPage*> live;
    for (const auto& [id, sequence] : model_) {
      for (const auto& page : sequence.pages) live.insert(page.get());
    }
    return static_cast<int64_t>(live.size());
  }
  int64_t Unused() const { return options_.pages - Live(); }

  std::vector<int64_t> Ids() const {
    std::vector<int64_t> ids;
    for (const auto& [id, sequence] : model_) ids.push_back(id);
    return ids;
  }

  int64_t Any() { return rng_.Pick(Ids()); }

  // Runs `call`, which must be refused with `code` and change nothing.
  template <typename F>
  void Refused(Code code, const F& call) {
    const KvBatch before = cache_.Batch(Ids());
    try {
      call();
      ADD_FAILURE() << "not refused";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), code) << error.what();
    }
    const KvBatch after = cache_.Batch(Ids());
    EXPECT_EQ(before.kv_lens, after.kv_lens);
    EXPECT_EQ(before.page_table, after.page_table);
  }

  void Create() {
    if (model_.size() >= 9) return Free();
    const int64_t id = cache_.Create();
    ASSERT_TRUE(ids_seen_.insert(id).second) << "id " << id << " came twice";
    model_[id].stamps.resize(static_cast<size_t>(options_.layers));
  }

  void Fork() {
    if (model_.empty() || model_.size() >= 9) return Create();
    const int64_t parent = Any();
    const int64_t id = cache_.Fork(parent);
    ASSERT_TRUE(ids_seen_.insert(id).second) << "id " << id << " came twice";
    model_[id] = model_[parent];
    model_[id].safe_from = model_[parent].safe_from = model_[parent].length;
  }

  void Free() {
    if (model_.empty()) return Create();
    const int64_t id = Any();
    cache_.Free(id);
    model_.erase(id);
    Refused(Code::kBadSequence, [&] { cache_.Free(id); });
  }

  void Truncate() {
    if (model_.empty()) return Create();
    const int64_t id = Any();
    ModelSequence& sequence = model_[id];
    const int64_t length = rng_.Between(0, sequence.length);
    cache_.Truncate(id, length);
    sequence.length = length;
    sequence.safe_from = std::min(sequence.safe_from, length);
    sequence.pages.resize(
        static_cast<size_t>((length + options_.page_size - 1) / options_.page_size));
    for (auto& stamps : sequence.stamps) stamps.resize(static_cast<size_t>(length));
  }

  void Extend();
  void Write();
  void Misuse();

  const KvCacheOptions options_;
  KvCache cache_;
  Rng rng_;
  std::map<int64_t, ModelSequence> model_;
  std::set<int64_t> ids_seen_;
  uint64_t stamp_ = 0;
  int64_t refused_ = 0;
  int64_t copied_ = 0;
};

void History::Extend() {
  if (model_.empty()) return Create();
  const int64_t id = Any();
  ModelSequence& sequence = model_[id];
  const int64_t tokens = rng_.Below(3 * options_.page_size + 1);
  // A page for every position that is the first of one, and the copy.
  int64_t need = 0;
  for (int64_t p = sequence.length; p < sequence.length + tokens; ++p) {
    need += p % options_.page_size == 0;
  }
  const bool copy = tokens > 0 && sequence.length % options_.page_size != 0 &&
                    sequence.pages.back().use_count() > 1;
  need += copy;
  if (need > Unused()) {
    ++refused_;
    return Refused(Code::kOutOfPages, [&] { cache_.Extend(id, tokens); });
  }
  cache_.Extend(id, tokens);
  if (copy) {
    sequence.pages.back() = std::make_shared<ModelPage>();
  }
  sequence.length += tokens;
  while (static_cast<int64_t>(sequence.pages.size()) * options_.page_size < sequence.length) {
    sequence.pages.push_back(std::make_shared<ModelPage>());
  }
  for (auto& stamps : sequence.stamps) stamps.resize(static_cast<size_t>(sequence.length), 0);
}

void History::Write() {
  if (model_.empty()) return Create();
  const int64_t id = Any();
  ModelSequence& sequence = model_[id];
  const int64_t first = rng_.Between(0, sequence.length);
  const int64_t tokens = rng_.Below(std::min(sequence.length - first, 2 * options_.page_size) + 1);
  const int64_t layer = rng_.Below(options_.layers);
  const int64_t heads = options_.kv_heads, d = options_.head_dim;

  HeadsView views[2];
  std::vector<uint8_t> memory[2];
  const uint64_t stamp = stamp_ + 1;
  stamp_ += static_cast<uint64_t>(tokens);
  for (int64_t part = 0; part < 2; ++part) {
    HeadsView& view = views[part];
    view.dtype = rng_.OneIn(2) ? DType::kF32 : options_.dtype;
    view.tokens = tokens;
    view.heads = heads;
    view.head_dim = d;
    const bool heads_outer = rng_.OneIn(3), backwards = rng_.OneIn(3);
    view.token_stride = heads_outer ? d + 1 : heads * d;
    view.head_stride = heads_outer ? std::max<int64_t>(tokens, 1) * (d + 1) : d;
    const int64_t size = static_cast<int64_t>(SizeOf(view.dtype));
    memory[part].resize(static_cast<size_t>((tokens + 1) * heads * (d + 1) * size + 1));
    uint8_t* data = memory[part].data() + 1;  // aligned to nothing
    if (backwards && tokens > 0) {
      data += (tokens - 1) * view.token_stride * size;
      view.token_stride = -view.token_stride;
    }
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t h = 0; h < heads; ++h) {
        for (int64_t i = 0; i < d; ++i) {
          const float value = ValueOf(stamp + static_cast<uint64_t>(t), part, h, i);
          Store(view.dtype, Encode(view.dtype, value),
                data + (t * view.token_stride + h * view.head_stride + i) * size);
        }
      }
    }
    view.data = data;
  }

  const int64_t first_page = first / options_.page_size;
  int64_t need = 0;
  for (int64_t p = first_page; p * options_.page_size < first + tokens && tokens > 0; ++p) {
    need += sequence.pages[static_cast<size_t>(p)].use_count() > 1;
  }
  if (first >= sequence.safe_from) {
    ASSERT_EQ(need, 0) << "positions that Extend reserved";
  }
  const auto write = [&] { cache_.Write(layer, id, first, views[0], views[1]); };
  if (need > Unused()) {
    ++refused_;
    return Refused(Code::kOutOfPages, write);
  }
  write();
  copied_ += need;
  for (int64_t t = 0; t < tokens; ++t) {
    const int64_t position = first + t;
    sequence.stamps[static_cast<size_t>(layer)][static_cast<size_t>(position)] =
        stamp + static_cast<uint64_t>(t);
    auto& page = sequence.pages[static_cast<size_t>(position / options_.page_size)];
    if (page.use_count() > 1) page = std::make_shared<ModelPage>();
  }
}

void History::Misuse() {
  Refused(Code::kBadSequence, [&] { cache_.Extend(rng_.Between(-3, 0), 1); });
  if (model_.empty()) return;
  const int64_t id = Any();
  const int64_t length = model_[id].length;
  const int64_t heads = options_.kv_heads, d = options_.head_dim;
  const std::vector<float> some(static_cast<size_t>(2 * heads * d), 1.0f);
  const HeadsView two{some.data(), DType::kF32, 2, heads, d, heads * d, d};
  switch (rng_.Below(6)) {
    case 0:
      return Refused(Code::kBadRange, [&] { cache_.Extend(id, -1); });
    case 1:
      return Refused(Code::kBadRange, [&] { cache_.Truncate(id, length + 1); });
    case 2:
      return Refused(Code::kBadRange, [&] { cache_.Write(0, id, length - 1, two, two); });
    case 3:
      return Refused(Code::kBadRange, [&] { cache_.Write(options_.layers, id, 0, two, two); });
    case 4:
      return Refused(Code::kBadRange, [&] { cache_.Write(0, id, -1, two, two); });
    default:
      return Refused(Code::kOutOfPages, [&] {
        cache_.Extend(id, rng_.OneIn(2) ? INT64_MAX : (options_.pages + 1) * options_.page_size);
      });
  }
}

void History::Compare() {
  const std::vector<int64_t> ids = Ids();
  ASSERT_EQ(cache_.sequences(), static_cast<int64_t>(ids.size()));
  const KvBatch batch = cache_.Batch(ids);
  ASSERT_EQ(batch.kv_lens.size(), ids.size());
  ASSERT_EQ(batch.page_table.size(), ids.size() * static_cast<size_t>(batch.max_pages));

  // Pages of the cache and of the model are the same up to their names.
  std::map<const ModelPage*, int32_t> names;
  std::set<int32_t> numbers;
  int64_t shared = 0, max_pages = 0;
  for (size_t s = 0; s < ids.size(); ++s) {
    const ModelSequence& sequence = model_[ids[s]];
    ASSERT_EQ(batch.kv_lens[s], sequence.length);
    ASSERT_EQ(cache_.Length(ids[s]), sequence.length);
    const int64_t held = static_cast<int64_t>(sequence.pages.size());
    ASSERT_LE(held, batch.max_pages);
    max_pages = std::max(max_pages, held);
    for (int64_t i = 0; i < batch.max_pages; ++i) {
      const int32_t number =
          batch.page_table[s * static_cast<size_t>(batch.max_pages) + static_cast<size_t>(i)];
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
  ASSERT_EQ(batch.max_pages, max_pages);
  ASSERT_EQ(cache_.pages_used(), static_cast<int64_t>(numbers.size()));
  ASSERT_EQ(cache_.pages_free(), options_.pages - cache_.pages_used());
  ASSERT_EQ(cache_.pages_shared(), shared);

  for (int64_t layer = 0; layer < options_.layers; ++layer) {
    const PagedKv views[2] = {cache_.Keys(layer), cache_.Values(layer)};
    for (size_t s = 0; s < ids.size(); ++s) {
      const auto& stamps = model_[ids[s]].stamps[static_cast<size_t>(layer)];
      for (size_t p = 0; p < stamps.size(); ++p) {
        if (stamps[p] == 0) continue;
        const size_t page = p / static_cast<size_t>(options_.page_size);
        const int64_t number = batch.page_table[s * static_cast<size_t>(batch.max_pages) + page];
        const int64_t slot = static_cast<int64_t>(p) % options_.page_size;
        for (int64_t part = 0; part < 2; ++part) {
          const PagedKv& v = views[part];
          for (int64_t h = 0; h < options_.kv_heads; ++h) {
            for (int64_t i = 0; i < options_.head_dim; ++i) {
              const double got = Decode(v.dtype, Element(v, number, slot, h, i));
              ASSERT_EQ(got, ValueOf(stamps[p], part, h, i))
                  << "sequence " << ids[s] << " position " << p << " layer " << layer << " part "
                  << part << " head " << h;
            }
          }
        }
      }
    }
  }
}

std::vector<Case> Cases() {
  std::vector<Case> cases;
  uint64_t seed = 1;
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (const int64_t page_size : {1, 2, 3, 4, 7, 16}) {
      for (const int64_t pages : {1, 5, 12, 20}) {
        if (pages * page_size > 200) continue;
        Case c;
        c.options.layers = 1 + static_cast<int64_t>(seed) % 3;
        c.options.kv_heads = 1 + static_cast<int64_t>(seed / 3) % 3;
        c.options.head_dim = 1 + static_cast<int64_t>(seed / 2) % 5;
        c.options.pages = pages;
        c.options.page_size = page_size;
        c.options.dtype = dtype;
        c.seed = seed++;
        cases.push_back(c);
      }
    }
  }
  return cases;
}

class KvCacheModelTest : public testing::TestWithParam<Case> {};

TEST_P(KvCacheModelTest, RandomHistory) {
  constexpr int kSteps = 3000;
  History history(GetParam());
  for (int step = 0; step < kSteps && !HasFailure(); ++step) {
    history.Step();
    history.Compare();
    if (HasFailure()) ADD_FAILURE() << "at step " << step;
  }
  // So that the comparisons above have met what they are for.
  EXPECT_GT(history.refused(), 30) << "the pool is not small enough to be full often";
  if (GetParam().options.pages > 1) {
    EXPECT_GT(history.copied(), 10) << "too little is shared";
  }
}

std::string CaseName(const testing::TestParamInfo<Case>& info) {
  const KvCacheOptions& o = info.param.options;
  return Concat(Name(o.dtype), "_", o.pages, "_pages_of_", o.page_size);
}

INSTANTIATE_TEST_SUITE_P(, KvCacheModelTest, testing::ValuesIn(Cases()), CaseName);

}  // namespace
}  // namespace riffle::test
