// Several prompts continued together by a language model from a GGUF file:
//   engine MODEL.gguf "The capital of France is" "2 + 2 ="
// Without arguments a small model with random weights runs on token ids. Each text is compared with
// the one that the request gets when it runs alone.
#include <cstdio>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/tokenizer/tokenizer.h"
#include "testing/random_models.h"

namespace {

using Tokens = std::vector<int32_t>;

std::vector<Tokens> Generate(const riffle::engine::Model& model,
                             const std::vector<Tokens>& prompts) {
  riffle::engine::Engine engine(model);
  for (const Tokens& prompt : prompts) engine.Submit({.prompt = prompt, .max_new_tokens = 12});
  std::vector<Tokens> texts(prompts.size());
  while (!engine.done()) {
    for (const riffle::engine::Generated& made : engine.Step()) {
      texts[made.request].push_back(made.token);
    }
  }
  return texts;
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<uint8_t> tiny = riffle::testing::RandomModelFile("llama");
  const auto file = argc > 1 ? riffle::engine::GgufFile::Open(argv[1])
                             : riffle::engine::GgufFile::Parse(tiny, "tiny");
  const riffle::engine::Model model(file);
  std::vector<Tokens> prompts = {{1, 17, 80}, {1, 17, 80, 5, 99}, {1}};
  if (argc > 1) {
    const riffle::engine::Tokenizer tokenizer(file);
    prompts.clear();
    for (int i = 2; i < argc; ++i) prompts.push_back(tokenizer.Encode(argv[i]));
  }
  const std::vector<Tokens> texts = Generate(model, prompts);
  for (size_t i = 0; i < texts.size(); ++i) {
    if (argc > 1) {
      std::printf("%s%s\n", argv[i + 2], riffle::engine::Tokenizer(file).Decode(texts[i]).c_str());
    } else {
      for (const int32_t token : texts[i]) std::printf("%d ", token);
      std::printf("\n");
    }
    if (texts[i].empty() || Generate(model, {prompts[i]})[0] != texts[i]) {
      std::printf("not the tokens of the request alone\n");
      return 1;
    }
  }
}
