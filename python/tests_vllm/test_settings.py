"""RIFFLE_VLLM, the line in the log, and a vLLM that is not what the plugin was written for."""

import json
import os
import pathlib
import subprocess
import sys

import llama_case
import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

TESTS = pathlib.Path(__file__).parent

# Each case in a child of a process that has imported vLLM and not yet registered anything.
CASES = """
import json, logging, os, sys
import riffle.torch
import vllm.v1.core.sched.scheduler
import vllm.v1.worker.cpu_model_runner
from vllm.v1.sample.sampler import Sampler

own = Sampler.sample

class Lines(logging.Filter):  # configuring logging takes handlers away
    def __init__(self):
        super().__init__()
        self.lines = []

    def filter(self, record):
        self.lines.append([record.levelname, record.getMessage()])
        return True

def case(setting, change):
    lines = Lines()
    logging.getLogger("vllm.riffle").addFilter(lines)
    if setting is not None:
        os.environ["RIFFLE_VLLM"] = setting
    exec(change)
    before = Sampler.sample
    import riffle.vllm
    riffle.vllm.register()
    riffle.vllm.register()
    return {"lines": lines.lines, "sampler": Sampler.sample is not before}

results = []
for setting, change in json.loads(sys.argv[1]):
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.write(writer, json.dumps(case(setting, change)).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as output:
        results.append(json.loads(output.read()))
print(json.dumps(results))
"""

OTHER_SAMPLER = """
def sample(self, logits, metadata):
    return own(self, logits, metadata)
Sampler.sample = sample
"""
OTHER_ATTENTION = """
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl
CPUAttentionBackendImpl.forward = lambda self, layer, query, key, value, cache, metadata: None
"""
OTHER_PLATFORM = """
from vllm.platforms.cpu import CpuPlatform
CpuPlatform.check_and_update_config = classmethod(lambda cls, config, more: None)
"""
OTHER_VERSION = "import vllm; vllm.__version__ = '9.9.9'"
NOT_A_CPU = "from vllm.platforms import current_platform; type(current_platform).is_cpu = lambda self: False"


@pytest.fixture(scope="module")
def cases() -> dict:
    wanted = {
        "default": (None, ""), "on": ("1", ""), "off": ("0", ""), "sampler": ("sampler", ""), "list": (" Sampler , attention", ""),
        "without": ("attention,mla", ""), "unknown": ("sampler,rope", ""), "only unknown": ("rope", ""),
        "other sampler": ("sampler", OTHER_SAMPLER), "other attention": ("1", OTHER_ATTENTION), "other methods": ("1", OTHER_PLATFORM),
        "other version": ("sampler", OTHER_VERSION), "other platform": ("1", NOT_A_CPU),
    }  # fmt: skip
    environment = {**os.environ, **llama_case.ENVIRONMENT, "OMP_NUM_THREADS": "1"}
    environment.pop("RIFFLE_VLLM", None)
    command = [sys.executable, "-c", CASES, json.dumps(list(wanted.values()))]
    run = subprocess.run(command, env=environment, timeout=900, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return dict(zip(wanted, json.loads(run.stdout.splitlines()[-1]), strict=True))


@pytest.mark.parametrize("case", ["default", "on", "sampler", "list", "unknown", "other version", "other attention", "other methods"])
def test_the_sampler_is_on(cases, case):
    assert cases[case]["sampler"]
    line = cases[case]["lines"][-1][1]
    assert line.startswith("riffle ") and "sampler" in line.split(" on")[0]


@pytest.mark.parametrize("case", ["off", "without", "only unknown", "other sampler", "other platform"])
def test_the_sampler_is_off(cases, case):
    assert not cases[case]["sampler"]


def test_the_log_says_it_once(cases):
    assert cases["off"]["lines"] == [["INFO", "riffle: off (RIFFLE_VLLM)"]]
    assert cases["sampler"]["lines"] == [["INFO", cases["sampler"]["lines"][0][1]]]
    assert cases["other platform"]["lines"] == []


def test_unknown_names_are_warned_of(cases):
    level, text = cases["unknown"]["lines"][0]
    assert level == "WARNING" and "rope" in text and "attention, mla, sparse, sampler" in text
    assert [level for level, _ in cases["only unknown"]["lines"]] == ["WARNING", "INFO"]


def test_another_vllm_is_left_alone_with_one_warning(cases):
    ((level, text),) = cases["other sampler"]["lines"]
    assert level == "WARNING" and "left to vLLM: sampler (not with this version of vLLM: " in text and "sample(self, logits, metadata)" in text
    ((level, text),) = cases["other attention"]["lines"]
    assert level == "WARNING" and "sparse, sampler on; left to vLLM: attention (" in text and "cache, metadata), not (self, layer, " in text
    ((level, text),) = cases["other methods"]["lines"]
    assert level == "WARNING" and ": attention, sampler on; left to vLLM: mla (not with this version of vLLM: " in text and "sparse (" in text
    ((level, text),) = cases["other version"]["lines"]
    assert level == "WARNING" and "not tried with vLLM 9.9.9" in text


ENGINE = """
import sys
sys.path.insert(0, "TESTS")
import llama_case
llama_case.in_one_process()
import vllm.v1.worker.cpu_model_runner
from vllm.v1.sample.sampler import Sampler
own = Sampler.sample
CHANGE
from vllm import LLM, SamplingParams
llm = LLM(llama_case.model(), **llama_case.ENGINE)
params = [SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True), SamplingParams(seed=1, top_p=0.9, max_tokens=8, ignore_eos=True)]
print("tokens", [len(output.outputs[0].token_ids) for output in llm.generate(llama_case.prompts(2), params, use_tqdm=False)])
print("own", Sampler.sample.__name__)
"""


def test_an_engine_of_another_vllm_works():
    code = ENGINE.replace("TESTS", str(TESTS)).replace("CHANGE", OTHER_SAMPLER)
    run = subprocess.run([sys.executable, "-c", code], timeout=900, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "tokens [8, 8]" in run.stdout and "own sample" in run.stdout
    assert (run.stdout + run.stderr).count("sampler (not with this version of vLLM") == 1
