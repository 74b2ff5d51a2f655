// Gemma 3 (text only) as a GGUF file describes it: hyperparameters and weights in memory.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/gguf/gguf.h"
#include "riffle/runtime.h"

namespace riffle::engine {

// From the file's metadata; names as in Hugging Face's configuration.
struct Config {
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t layers = 0;
  int64_t intermediate_size = 0;
  int64_t q_heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t context_length = 0;  // tokens, prompt and generated
  int64_t sliding_window = 0;  // of local layers
  int64_t global_every = 6;    // layers global_every - 1, 2 * global_every - 1, ... are global
  double rms_epsilon = 0;
  double rope_base_local = 10000;
  double rope_base_global = 0;
  int32_t bos_token = 0;
  std::vector<int32_t> stop_tokens;  // each ends a text: of the sequence, of a turn, ...

  bool IsGlobal(int64_t layer) const { return (layer + 1) % global_every == 0; }
};

// Throws BadModel, naming the key, unless the file is a Gemma 3 this code can run.
Config ReadConfig(const GgufFile& file);

struct Weights;  // weights.h

class Model {
 public:
  // Reads the weights into the layout the kernels want, on the threads of `pool` (null:
  // DefaultPool()); the file is not needed afterwards, except for its tokenizer. Throws BadModel,
  // Error(kOutOfMemory).
  explicit Model(const GgufFile& file, ThreadPool* pool = nullptr);
  static Model Load(const std::string& path, ThreadPool* pool = nullptr) {
    return Model(GgufFile::Open(path), pool);
  }
  ~Model();
  Model(Model&&) noexcept;

  const GgufFile& file() const { return file_; }
  const Config& config() const { return config_; }
  const Weights& weights() const { return *weights_; }

 private:
  GgufFile file_;
  Config config_;
  std::unique_ptr<Weights> weights_;
};

}  // namespace riffle::engine
