"""What a layer's call of attention costs in vLLM beside the work: the write of a token and its attention, called again and again.

    OMP_NUM_THREADS=2 .venv-vllm/bin/python bench/vllm_calls.py

One sequence that decodes, 32 query heads over 8 of keys and values, head_dim 128, bfloat16: vLLM's backend and Riffle's in turn, in
one process, without an engine. With one key a call is all overhead. Answers are compared before anything is timed.
"""

import argparse
import os
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "python" / "tests_vllm"))
os.environ.setdefault("RIFFLE_VLLM", "0")
CALLS = 500  # between two looks at the clock


def calls(kv_len: int, kv_cache_dtype: str):
    """A layer's call of each way, and the case that they are of."""
    import torch
    from attention_case import Case
    from riffle.vllm._attention_backend import RiffleAttentionImpl
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl

    case = Case([1], [kv_len], dtype=torch.bfloat16, q_heads=32, kv_heads=8, head_size=128, block_size=128, kv_cache_dtype=kv_cache_dtype)
    # vLLM cuts off what a cache of 8-bit floats does not hold, Riffle rounds it; these numbers both have.
    case.keys, case.values = ([x.to(torch.float8_e4m3fn).to(x.dtype) for x in side] for side in (case.keys, case.values))
    slot, key, value = case.slots(0)[-1:], case.keys[0][-1:], case.values[0][-1:]

    def of(kind, metadata):
        impl, cache, out = case.implementation(kind), case.cache(), torch.empty_like(case.q)
        impl.do_kv_cache_update(case.layer, case.keys[0], case.values[0], cache, case.slots(0))

        def call():
            impl.do_kv_cache_update(case.layer, key, value, cache, slot)
            return impl.forward(case.layer, case.q, key, value, cache, metadata, out)

        return call

    made = {"vLLM": of(CPUAttentionBackendImpl, case.native_metadata()), "Riffle": of(RiffleAttentionImpl, case.metadata())}
    torch.testing.assert_close(made["Riffle"](), made["vLLM"](), rtol=2**-7, atol=2**-7)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="turns of each way")
    rounds = parser.parse_args().rounds
    import riffle.torch
    import torch

    riffle.torch.use_torch_threads()
    print(f"{torch.get_num_threads()} threads, {riffle.info()['target']}; microseconds, median of {rounds} turns of {CALLS} calls")
    print("| cache | tokens | vLLM, us | Riffle, us |\n| --- | --- | --- | --- |")
    for kind, name in (("auto", "bf16"), ("fp8_e4m3", "fp8")):
        for kv_len in (1, 128, 1024):
            times: dict[str, list[float]] = {}
            for way, call in list(calls(kv_len, kind).items()) * rounds:
                begin = time.perf_counter()
                for _ in range(CALLS):
                    call()
                times.setdefault(way, []).append((time.perf_counter() - begin) / CALLS)
            print(f"| {name} | {kv_len} | " + " | ".join(f"{1e6 * statistics.median(seconds):.1f}" for seconds in times.values()) + " |", flush=True)


if __name__ == "__main__":
    main()
