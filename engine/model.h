// A model from a GGUF file: its spec and its weights in memory.
#pragma once

#include <memory>
#include <string>

#include "engine/arch/model_spec.h"
#include "engine/gguf/gguf.h"
#include "riffle/runtime.h"

namespace riffle::engine {

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
  const ModelSpec& spec() const { return spec_; }
  const Weights& weights() const { return *weights_; }

 private:
  GgufFile file_;
  ModelSpec spec_;
  std::unique_ptr<Weights> weights_;
};

}  // namespace riffle::engine
