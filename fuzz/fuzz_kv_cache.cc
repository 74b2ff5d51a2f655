// Makes any sequence of calls with any arguments on a small KvCache. A refused call must change
// nothing, an accepted one must do what a vector per sequence would do, and no page may be lost.
#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <map>
#include <utility>
#include <vector>

#include "fuzz/bytes.h"
#include "riffle/error.h"
#include "riffle/kv_cache.h"

namespace {

using riffle::BlockKey;
using riffle::HeadsView;
using riffle::KvBatch;
using riffle::KvCache;
using riffle::PagedKv;
using riffle::fuzz::Bytes;

void Expect(bool ok) {
  if (!ok) std::abort();
}

// Takes a number that is mostly small, now and then any number.
int64_t Amount(Bytes& bytes) {
  const auto first = bytes.Take<uint8_t>();
  return first < 240 ? first % 24 - 2 : bytes.Take<int64_t>();
}

class Session {
 public:
  explicit Session(Bytes bytes) : bytes_(bytes), cache_(Options(bytes_)) {}

  void Run() {
    for (int calls = 0; !bytes_.empty() && calls < 500; ++calls) {
      const KvBatch before = cache_.Batch(Ids());
      const int64_t free = cache_.pages_free();
      try {
        Call();
      } catch (const riffle::Error&) {
        const KvBatch after = cache_.Batch(Ids());
        Expect(after.kv_lens == before.kv_lens && after.page_table == before.page_table);
        Expect(cache_.pages_free() == free);
      }
      Compare();
    }
  }

 private:
  static riffle::KvCacheOptions Options(Bytes& bytes) {
    riffle::KvCacheOptions options;
    options.head_dim = 1;
    options.pages = 1 + bytes.Take<uint8_t>() % 12;
    options.page_size = 1 + bytes.Take<uint8_t>() % 5;
    options.dtype = riffle::DType::kF32;
    return options;
  }

  // Ids of the sequences that are in the pool.
  std::vector<int64_t> Ids() const {
    std::vector<int64_t> ids;
    for (const auto& [id, tokens] : model_) {
      if (!images_.contains(id)) ids.push_back(id);
    }
    return ids;
  }

  // A key for each full page: a hash of its place and tokens.
  std::vector<BlockKey> KeysOf(const std::vector<float>& tokens) const {
    const auto page_size = static_cast<size_t>(cache_.options().page_size);
    std::vector<BlockKey> keys;
    for (size_t begin = 0; begin + page_size <= tokens.size(); begin += page_size) {
      uint64_t hash = 1469598103934665603u;
      for (size_t p = begin; p < begin + page_size; ++p) {
        hash = (hash ^ static_cast<uint64_t>(tokens[p])) * 1099511628211u;
      }
      keys.push_back({{hash, begin}});
    }
    return keys;
  }

  void SetBlockKeys(int64_t id) {
    std::vector<BlockKey> keys = model_.contains(id) ? KeysOf(model_[id]) : std::vector<BlockKey>();
    if (bytes_.OneIn(16)) keys.push_back({{bytes_.Take<uint64_t>(), 0}});
    cache_.SetBlockKeys(id, keys);
    Expect(model_.contains(id));
    const int64_t page_size = cache_.options().page_size;
    for (size_t i = 0; i < keys.size(); ++i) {
      const auto begin = model_[id].begin() + static_cast<int64_t>(i) * page_size;
      known_[{keys[i].words[0], keys[i].words[1]}].assign(begin, begin + page_size);
    }
  }

  void CreateFrom(int64_t id) {
    if (model_.size() >= 12) return;
    std::vector<BlockKey> keys;
    if (model_.contains(id)) keys = KeysOf(model_[id]);
    const int64_t length = cache_.Lookup(keys), page_size = cache_.options().page_size;
    Expect(length % page_size == 0 && length <= static_cast<int64_t>(keys.size()) * page_size);
    const int64_t created = cache_.Create(keys);
    Expect(!model_.contains(created) && cache_.Length(created) == length);
    std::vector<float>& tokens = model_[created];
    for (size_t i = 0; static_cast<int64_t>(tokens.size()) < length; ++i) {
      const std::vector<float>& block = known_.at({keys[i].words[0], keys[i].words[1]});
      tokens.insert(tokens.end(), block.begin(), block.end());
    }
  }

  void SwapOut(int64_t id) {
    std::vector<uint8_t> memory(model_.contains(id) ? static_cast<size_t>(cache_.SwapBytes(id))
                                                    : 9);
    if (bytes_.OneIn(16) && !memory.empty()) memory.pop_back();
    cache_.SwapOut(id, memory);
    Expect(model_.contains(id));
    images_[id] = memory;
  }

  void SwapIn() {
    if (images_.empty()) return;
    auto image = images_.begin();
    std::advance(image, bytes_.Take<uint8_t>() % images_.size());
    cache_.SwapIn(image->first, image->second);
    images_.erase(image);
  }

  void Call() {
    const uint8_t op = bytes_.Take<uint8_t>() % 13;
    if (op == 0 && model_.size() < 12) {
      model_[cache_.Create()];
      return;
    }
    const uint8_t which = bytes_.Take<uint8_t>();
    const std::vector<int64_t> ids = Ids();
    const int64_t id = which >= 250 || ids.empty() ? Amount(bytes_) : ids[which % ids.size()];
    const bool known = model_.contains(id);
    if (op <= 2 && model_.size() < 12) {
      const int64_t fork = cache_.Fork(id);
      Expect(known && !model_.contains(fork));
      model_[fork] = model_[id];
    } else if (op == 3) {
      const int64_t length = Amount(bytes_);
      cache_.Truncate(id, length);
      Expect(known && length <= static_cast<int64_t>(model_[id].size()));
      model_[id].resize(static_cast<size_t>(length));
    } else if (op == 4) {
      cache_.Free(id);
      Expect(model_.erase(id) == 1);
      images_.erase(id);
    } else if (op == 5) {
      const int64_t tokens = Amount(bytes_);
      cache_.Extend(id, tokens);
      Expect(known);
      model_[id].resize(model_[id].size() + static_cast<size_t>(tokens), kUnwritten);
    } else if (op == 8) {
      SetBlockKeys(id);
    } else if (op == 9) {
      CreateFrom(id);
    } else if (op == 10) {
      SwapOut(id);
    } else if (op == 11) {
      SwapIn();
    } else {
      Write(id);
    }
  }

  void Write(int64_t id) {
    const int64_t position = Amount(bytes_);
    const int64_t tokens = bytes_.Take<uint8_t>() % 16;
    std::vector<float> keys, values;
    for (int64_t t = 0; t < tokens; ++t) {
      keys.push_back(++stamp_);
      values.push_back(-stamp_);
    }
    const HeadsView k{keys.data(), riffle::DType::kF32, tokens, 1, 1, 1, Amount(bytes_)};
    const HeadsView v{values.data(), riffle::DType::kF32, tokens, 1, 1, 1, 1};
    cache_.Write(0, id, position, k, v);
    Expect(model_.contains(id));
    for (int64_t t = 0; t < tokens; ++t) {
      model_[id].at(static_cast<size_t>(position + t)) = keys[static_cast<size_t>(t)];
    }
  }

  void Compare() const {
    const std::vector<int64_t> ids = Ids();
    const KvBatch batch = cache_.Batch(ids);
    const PagedKv keys = cache_.Keys(0), values = cache_.Values(0);
    const auto* const k = static_cast<const float*>(keys.data);
    const auto* const v = static_cast<const float*>(values.data);
    std::map<int32_t, int> references;
    size_t s = 0;
    for (const int64_t id : ids) {
      const std::vector<float>& tokens = model_.at(id);
      Expect(batch.kv_lens[s] == static_cast<int64_t>(tokens.size()));
      const int32_t* row = batch.page_table.data() + s * static_cast<size_t>(batch.max_pages);
      for (size_t p = 0; p < tokens.size(); ++p) {
        const int64_t slot = static_cast<int64_t>(p) % keys.page_size;
        const int32_t page = row[static_cast<int64_t>(p) / keys.page_size];
        references[page] += slot == 0;
        const int64_t at = page * keys.page_stride + slot * keys.token_stride;
        Expect(tokens[p] == kUnwritten || (k[at] == tokens[p] && v[at] == -tokens[p]));
      }
      ++s;
    }
    int64_t shared = 0;
    for (const auto& [page, count] : references) shared += count > 1;
    Expect(cache_.pages_used() == static_cast<int64_t>(references.size()));
    Expect(cache_.pages_used() + cache_.pages_free() == keys.num_pages);
    Expect(cache_.pages_shared() == shared);
  }

  static constexpr float kUnwritten = 0;

  Bytes bytes_;
  KvCache cache_;
  std::map<int64_t, std::vector<float>> model_;                        // the keys of each sequence
  std::map<std::pair<uint64_t, uint64_t>, std::vector<float>> known_;  // blocks by their keys
  std::map<int64_t, std::vector<uint8_t>> images_;  // of sequences that are swapped out
  float stamp_ = 0;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Session(Bytes(data, size)).Run();
  return 0;
}
