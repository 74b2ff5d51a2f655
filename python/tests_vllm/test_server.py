"""vLLM's OpenAI server with the plugin under 64 clients, some of which leave early: nothing is lost and nothing grows.

RIFFLE_TEST_LONG=1 makes it two minutes; 20 s otherwise.
"""

import asyncio
import collections
import os
import random
import time

import pytest

server_case = pytest.importorskip("server_case", reason="vLLM is not installed")
aiohttp = pytest.importorskip("aiohttp", reason="vLLM is not installed")
psutil = pytest.importorskip("psutil", reason="vLLM is not installed")

SECONDS = 120 if os.environ.get("RIFFLE_TEST_LONG") == "1" else 20
CLIENTS = 64
# oneDNN keeps a kernel for each number of tokens that a step has had, 1024 of them: 300 MB after 2000 requests, and none with 8.
FEW_KERNELS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "8"}


def request_of(numbers: random.Random) -> dict:
    """A request for all of `max_tokens`."""
    body = {
        "model": "llama", "prompt": [numbers.randrange(3, 500) for _ in range(numbers.randrange(4, 60))],
        "max_tokens": numbers.randrange(4, 40), "ignore_eos": True, "temperature": numbers.choice([0.0, 0.7, 1.0]),
    }  # fmt: skip
    more = [{}, {"top_p": 0.95}, {"top_k": 40, "seed": 5}, {"top_p": 0.9, "min_p": 0.05, "logprobs": 3}, {"presence_penalty": 0.5}]
    return body | numbers.choice(more)


async def whole(session, url: str, body: dict, seen: collections.Counter) -> None:
    async with session.post(url, json=body) as response:
        answer = await response.json()
    assert response.status == 200, answer
    assert answer["usage"]["completion_tokens"] == body["max_tokens"] and answer["choices"][0]["finish_reason"] == "length"
    seen["whole"] += 1


async def streamed(session, url: str, body: dict, seen: collections.Counter) -> None:
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    usage, ended = None, False
    async with session.post(url, json=body) as response:
        assert response.status == 200
        async for line in response.content:
            ended |= line.startswith(b"data: [DONE]")
            if b'"completion_tokens":' in line:
                usage = int(line.split(b'"completion_tokens":')[1].split(b",")[0].split(b"}")[0])
    assert ended and usage == body["max_tokens"]
    seen["streamed"] += 1


async def cancelled(session, url: str, body: dict, seen: collections.Counter, numbers: random.Random) -> None:
    body |= {"stream": True, "max_tokens": 150}
    left = numbers.randrange(0, 10)
    async with session.post(url, json=body) as response:
        async for _ in response.content:
            left -= 1
            if left < 0:
                break
        response.close()
    seen["cancelled"] += 1


async def bad(session, url: str, body: dict, seen: collections.Counter, numbers: random.Random) -> None:
    body |= {"vllm_xargs": {"nan": numbers.randrange(0, 4)}}
    async with session.post(url, json=body) as response:
        answer = await response.text()
    assert response.status == 500, answer
    seen["bad"] += 1


async def client(session, url: str, number: int, end: float, seen: collections.Counter) -> None:
    numbers = random.Random(f"{number} {end}")
    while time.monotonic() < end:
        body, kind = request_of(numbers), numbers.random()
        if kind < 0.5:
            await whole(session, url, body, seen)
        elif kind < 0.75:
            await streamed(session, url, body, seen)
        elif kind < 0.95:
            await cancelled(session, url, body, seen, numbers)
        else:
            await bad(session, url, body, seen, numbers)


async def load(url: str, seconds: float) -> collections.Counter:
    seen: collections.Counter = collections.Counter()
    end = time.monotonic() + seconds
    timeout = aiohttp.ClientTimeout(total=900)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(client(session, f"{url}/v1/completions", number, end, seen) for number in range(CLIENTS)))
    return seen


async def at_rest(url: str) -> None:
    """Until no request runs or waits: those that were cancelled are gone too."""
    async with aiohttp.ClientSession() as session:
        for _ in range(60):
            async with session.get(f"{url}/metrics") as response:
                text = await response.text()
            counts = [line.split()[-1] for line in text.splitlines() if line.startswith(("vllm:num_requests_running", "vllm:num_requests_waiting{"))]
            if len(counts) == 2 and all(float(count) == 0 for count in counts):
                return
            await asyncio.sleep(0.5)
    raise AssertionError(text)


def resources(pid: int) -> tuple[int, int]:
    """Bytes of memory and open files of a process and all its children."""
    root = psutil.Process(pid)
    processes = [root, *root.children(recursive=True)]
    time.sleep(2)  # sockets of clients that have left are closed
    return sum(process.memory_info().rss for process in processes), sum(process.num_fds() for process in processes)


def test_sixty_four_clients(tmp_path):
    options = ("--num-gpu-blocks-override", "256", "--logits-processors", "nan_on_request:NanOnRequest")
    with server_case.server(tmp_path / "server.log", *options, environment=FEW_KERNELS) as server:
        asyncio.run(load(server.url, SECONDS / 4))  # caches fill
        measured, seen = [], collections.Counter()
        for _ in range(2):
            seen += asyncio.run(load(server.url, SECONDS / 2))
            asyncio.run(at_rest(server.url))
            measured.append(resources(server.pid))
        print(dict(seen), measured)
        assert min(seen[kind] for kind in ("whole", "streamed", "cancelled", "bad")) > 0 and seen.total() >= CLIENTS
        (memory, files), (memory_after, files_after) = measured
        assert files_after <= files + 4
        assert memory_after <= memory * 1.01 + (8 << 20)
        log = server.log.read_text()
    assert "riffle" in log and "sampler on" in log.replace("attention, ", "").replace("mla, ", "").replace("sparse, ", "")
