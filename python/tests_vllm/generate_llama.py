"""Generates from the small Llama with an engine of several processes and writes the tokens to a file.

  generate_llama.py MODEL OUT TENSOR_PARALLEL           one host
  generate_llama.py MODEL OUT TENSOR_PARALLEL RANK      one of two hosts, as scripts/two_hosts.sh starts it
"""

import json
import os
import pathlib
import sys
import time

import llama_case

os.environ.update(llama_case.ENVIRONMENT)


def params() -> list:
    from vllm import SamplingParams

    greedy = [SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)] * 6
    return greedy + [SamplingParams(seed=i, top_p=0.95, max_tokens=24, ignore_eos=True) for i in range(2)]


def tokens(llm) -> list[list[int]]:
    outputs = llm.generate(llama_case.prompts(8, length=40), params(), use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


def parts_of(worker) -> tuple[list[str], int, str]:
    """Asked of each worker: the parts that are on, Riffle's threads, and the host."""
    import socket

    import riffle
    import riffle.vllm._parts

    return riffle.vllm._parts._active_parts, riffle.info()["threads"], socket.gethostname()


def follow(options: dict, out: pathlib.Path) -> None:
    """The workers of a host that is not the first, until the first has written its file."""
    from vllm import EngineArgs
    from vllm.v1.executor.multiproc_executor import MultiprocExecutor

    config = EngineArgs(**options).create_engine_config(headless=True)
    executor = MultiprocExecutor(config, monitor_workers=False)
    while not out.exists():
        time.sleep(0.5)
    executor.shutdown()


def main(model: str, out: str, tensor_parallel: str, rank: str | None = None) -> None:
    options = llama_case.ENGINE | {"model": model, "tensor_parallel_size": int(tensor_parallel)}
    if rank is not None:
        os.environ["VLLM_HOST_IP"] = os.environ["HOST_ADDRESS"]
        options |= {
            "nnodes": 2, "node_rank": int(rank), "master_addr": os.environ["MASTER_ADDR"], "master_port": 29500,
            "distributed_executor_backend": "mp",
        }  # fmt: skip
        if int(rank) > 0:
            follow(options, pathlib.Path(out))
            return
    from vllm import LLM

    llm = LLM(**options)
    pathlib.Path(out).write_text(json.dumps({"tokens": tokens(llm), "workers": llm.collective_rpc(parts_of)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
