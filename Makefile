# Two commands do everything from a clean clone: `make demo` and `make test`. The work is in scripts/ and CMakePresets.json;
# this file names it. JOBS=n sets the parallel compilations, RIFFLE_CACHE the folder that keeps downloads.

.DEFAULT_GOAL := help
.NOTPARALLEL:

STAGE := scripts/stage.sh

##@ First
help: ## this text
	@awk 'BEGIN { FS = ":.*## " } /^##@ / { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z0-9-]+:.*## / { sub(/:.*/, "", $$1); printf "  make %-17s %s\n", $$1, $$2 }' Makefile
demo: build ## set up, build and run the main job (fresh Debian or Ubuntu: asks for packages)
	@scripts/demo.sh
test: start setup test-cpp test-clang test-consumer test-python test-asan test-tsan fuzz ## set up and run every test
	@scripts/test_summary.sh

##@ Build
build: ## the library and the command: build/release/riffle
	@scripts/setup.sh build
	@scripts/highway.sh || true
	@scripts/build.sh release --target riffle riffle_cli
python: ## the Python package, installed into .venv
	@scripts/setup.sh build
	@scripts/venv.sh
	@scripts/python_package.sh
llama: ## libggml-cpu-riffle.so, which llama.cpp loads: docs/llama.cpp.md
	@scripts/setup.sh build
	@scripts/highway.sh || true
	@scripts/build.sh release --target riffle_llama
	@echo build/release/integrations/llama.cpp/libggml-cpu-riffle.so

##@ Tests, one kind each
test-cpp: setup ## C++ tests on every SIMD target of this machine
	@$(STAGE) cpp "C++ tests on every SIMD target (release)" scripts/ctest.sh release
test-clang: setup ## does clang build the library and the command without warnings
	@$(STAGE) clang "library and command by clang" scripts/build.sh clang
test-consumer: setup ## an installed riffle through find_package
	@$(STAGE) consumer "an installed riffle, through find_package" scripts/consumer_test.sh
test-python: setup ## Python tests and doctests
	@$(STAGE) venv "Python environment" scripts/venv.sh
	@$(STAGE) package "Python package" scripts/python_package.sh
	@$(STAGE) python "Python tests and doctests" \
	  .venv/bin/python -P -m pytest -n $${JOBS:-logical} --dist loadfile --doctest-modules --pyargs riffle python/tests
test-install: setup ## the source distribution by pip, in clean environments of the oldest and the newest Python here
	@$(STAGE) venv "Python environment" scripts/venv.sh
	@$(STAGE) install "the source distribution, installed by pip" scripts/install_test.sh
test-arm64: ## C++ tests on NEON: a cross compiler, and qemu-user to run them (about an hour)
	@$(STAGE) arm64 "C++ tests on 64-bit ARM, under qemu" scripts/arm64.sh
test-arm64-quick: ## those of them that take a few minutes
	@$(STAGE) arm64 "C++ tests on 64-bit ARM, under qemu" scripts/arm64.sh quick
test-arm64-bf16: ## what NEON_BF16 has code of its own for, by clang 19, under qemu
	@$(STAGE) arm64-bf16 "C++ tests on NEON_BF16, under qemu" scripts/arm64.sh bf16
test-dispatch: setup ## the targets that other x86 processors choose, under qemu-user's models of them
	@$(STAGE) dispatch "dispatch on other x86 processors, under qemu" scripts/ctest.sh release -L dispatch
test-transformers: setup ## riffle.transformers on every type of causal language model that Transformers has
	@$(STAGE) venv "Python environment" scripts/venv.sh
	@$(STAGE) package "Python package" scripts/python_package.sh
	@$(STAGE) transformers "every type of causal language model" env RIFFLE_TEST_ALL_MODELS=1 \
	  .venv/bin/python -P -m pytest python/tests/test_transformers_models.py python/tests/test_transformers_padding.py
test-two-hosts: ## riffle.torch.distributed on two hosts made of network namespaces; needs root
	@scripts/setup.sh hosts
	@$(STAGE) venv "Python environment" scripts/venv.sh
	@$(STAGE) package "Python package" scripts/python_package.sh
	@$(STAGE) two-hosts "riffle.torch.distributed on two hosts" env RIFFLE_TEST_TWO_HOSTS=1 \
	  .venv/bin/python -P -m pytest python/tests/test_torch_distributed.py -k two_hosts
test-asan: setup ## C++ tests under AddressSanitizer and UBSan
	@$(STAGE) asan "C++ tests under AddressSanitizer and UBSan" scripts/ctest.sh asan
test-tsan: setup ## pool and concurrent callers under ThreadSanitizer
	@$(STAGE) tsan "pool and concurrent callers under ThreadSanitizer" scripts/ctest.sh tsan
test-llama: setup ## libggml-cpu-riffle.so in an unmodified llama.cpp of Debian's
	@$(STAGE) llama "libggml-cpu-riffle.so in llama.cpp" scripts/llama_test.sh
# Each file of tests in a process of its own: an engine leaves its traces in the one it ran in.
test-vllm: vllm-environment ## riffle.vllm in vLLM's engine and server (downloads vLLM: 2 GB; PyTorch from an index with CUDA: 6 GB)
	@set -e; for file in python/tests_vllm/test_*.py; do name=$$(basename $$file .py); \
	  $(STAGE) vllm-$${name#test_} "riffle.vllm: $${name#test_}" .venv-vllm/bin/python -P -m pytest $$file; done
test-vllm-quick: vllm-environment ## of these the calls, and an engine of each part
	@set -e; for file in $$(grep -l mark.quick python/tests_vllm/test_*.py); do name=$$(basename $$file .py); \
	  $(STAGE) vllm-$${name#test_} "riffle.vllm, quick: $${name#test_}" .venv-vllm/bin/python -P -m pytest -m quick $$file; done
vllm-environment: setup
	@$(STAGE) venv "Python environment" scripts/venv.sh
	@$(STAGE) venv-vllm "Python environment of vLLM" scripts/venv.sh vllm
	@$(STAGE) package-vllm "Python package, for vLLM" scripts/python_package.sh vllm
fuzz: setup ## every fuzz target over its corpus, half a minute in all
	@$(STAGE) fuzz "fuzzing for half a minute" scripts/fuzz.sh 30

##@ Work
setup: ## packages, Highway and the model, for all of the above
	@$(STAGE) setup "packages, Highway and the model" \
	  sh -c 'scripts/setup.sh test && { scripts/highway.sh || true; } && scripts/model.sh'
sdist: ## the source distribution: dist/riffle_llm-VERSION.tar.gz
	@scripts/setup.sh build
	@scripts/venv.sh
	@scripts/sdist.sh
wheels: ## wheels for Linux on x86-64 and 64-bit ARM, tried in every Python here: dist/wheels
	@scripts/setup.sh build
	@scripts/venv.sh
	@scripts/wheels.sh
bench: build ## measure riffle beside this machine's read bandwidth and peak
	@for what in topk attention linear sample; do build/release/riffle bench $$what || exit 1; done
bench-llama: llama ## llama-bench with libggml-cpu-riffle.so and without, in turn
	@scripts/llama_host.sh
	@scripts/model.sh gemma
	@python3 bench/llama_bench.py --prepare
	@python3 bench/llama_bench.py
	@python3 bench/llama_bench.py --table
bench-vllm: vllm-environment ## vLLM's engine with its own attention and with Riffle's, in turn
	@.venv-vllm/bin/python -P bench/vllm_bench.py --all
	@.venv-vllm/bin/python -P bench/vllm_bench.py --table
format: ## rewrite C++ files in the project's format
	@scripts/lint.sh format --fix
docs: ## the API site: build/docs/html
	@scripts/setup.sh docs
	@scripts/venv.sh docs
	@scripts/docs.sh
lint: ## format, pages, clang-tidy, ruff, pyright, schemas, shellcheck
	@scripts/lint.sh
clean: ## remove what was built; .venv, .deps and the cache folder stay
	rm -rf build dist
distclean: clean ## remove .venv and .deps too
	rm -rf .venv .deps

start:
	@rm -rf build/log

.PHONY: help demo test build python llama test-cpp test-clang test-consumer test-python test-install test-arm64 \
  test-arm64-quick test-arm64-bf16 test-dispatch test-transformers test-two-hosts test-asan test-tsan test-llama \
  test-vllm test-vllm-quick vllm-environment fuzz setup sdist wheels bench bench-llama bench-vllm format docs lint \
  clean distclean start
