#!/usr/bin/env python3
"""libggml-cpu-riffle.so in an unmodified llama.cpp: tokens, refusals, and random nodes.

    llama_test.py BUILD_FOLDER [unittest arguments]

`make test-llama` builds the programs, fetches llama.cpp and runs this.
"""

import contextlib
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[3]
RUN = ROOT / "scripts" / "llama_run.sh"
CACHE = pathlib.Path(subprocess.check_output([ROOT / "scripts" / "llama_host.sh", "--path"], text=True).strip()).parent
GEMMA = CACHE / "models" / "gemma-3-270m-q4_k_m.gguf"
SMOLLM = CACHE / "models" / "smollm2-135m-instruct-q4_1.gguf"
BUILD = pathlib.Path()  # set by main
BACKEND = "libggml-cpu-riffle.so"

PROMPTS = [
    "The capital of France is",
    "Water boils at",
    "def fibonacci(n):\n    ",
    "The first president of the United States was",
]
LONG_PROMPT = " ".join(f"Item {i} costs {i * 7 % 13} coins." for i in range(90)) + " Item 91 costs"


def environment(**variables: str) -> dict[str, str]:
    return {**os.environ, "RIFFLE_GGML_LOG": "1", **variables}


class Server:
    """A llama-server with the file or without."""

    def __init__(self, which: str, model: pathlib.Path, *arguments: str):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = [RUN, which, "llama-server", "-m", model, "--port", str(self.port), "--host", "127.0.0.1"]
        self.log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [*map(str, command), "-t", "2", "--no-webui", "--no-warmup", *arguments],
            stdout=self.log,
            stderr=subprocess.STDOUT,
            env=environment(),
        )

    def __enter__(self) -> "Server":
        for _ in range(600):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health")
                return self
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        self.__exit__()
        raise RuntimeError("llama-server does not answer:\n" + self.text()[-3000:])

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()

    def text(self) -> str:
        self.log.seek(0)
        return self.log.read()

    def tokens(self, prompt: str, count: int) -> list[tuple[int, float]]:
        """Greedy tokens, each with how far its logit is above the next one."""
        request = {
            "prompt": prompt,
            "n_predict": count,
            "temperature": 0,
            "n_probs": 2,
            "ignore_eos": True,
            "cache_prompt": True,
        }
        with urllib.request.urlopen(
            urllib.request.Request(
                f"http://127.0.0.1:{self.port}/completion",
                json.dumps(request).encode(),
                {"Content-Type": "application/json"},
            )
        ) as reply:
            steps = json.load(reply)["completion_probabilities"]
        return [
            (step["id"], step["top_logprobs"][0]["logprob"] - step["top_logprobs"][1]["logprob"])
            for step in steps
        ]

    def all_at_once(self, prompts: list[str], count: int) -> list[list[tuple[int, float]]]:
        results: list[list[tuple[int, float]]] = [[] for _ in prompts]

        def ask(i: int) -> None:
            results[i] = self.tokens(prompts[i], count)

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(prompts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


class Tokens(unittest.TestCase):
    def compare(self, model, *arguments, gap=0.05, prompts=PROMPTS, count=32, together=False):
        """Tokens with and without the file, up to the first that was nearly another one."""
        answers = {}
        for which in ("off", "on"):
            with Server(which, model, *arguments) as server:
                if together:
                    answers[which] = server.all_at_once(prompts, count)
                else:
                    answers[which] = [server.tokens(prompt, count) for prompt in prompts]
            log = server.text()
            if which == "on":
                self.assertIn("attention by Riffle", log)
                nodes = re.findall(r"riffle: (q .*: Riffle)", log)
                self.assertTrue(nodes, "no node was computed by Riffle:\n" + log[-2000:])
                self.assertNotIn("attention failed", log)
            else:
                self.assertNotIn("riffle:", log)
        same = 0
        for prompt, off, on in zip(prompts, answers["off"], answers["on"], strict=True):
            self.assertEqual(len(off), len(on))
            for i, ((expected, margin), (got, _)) in enumerate(zip(off, on, strict=True)):
                if expected != got:
                    self.assertLess(margin, gap, f"token {i} of {prompt[:40]!r} is {got}, not {expected}")
                    break
                same += 1
        # Near ties may end a comparison early, but not most of them.
        self.assertGreater(same, len(prompts) * count // 2)
        return nodes

    def test_gemma(self):
        self.compare(GEMMA, "-c", "1024", "-np", "1")

    def test_smollm(self):
        self.compare(SMOLLM, "-c", "1024", "-np", "1")

    def test_long_prompt(self):
        """Prefill in several batches, and the ring caches of Gemma's sliding windows."""
        for model in (GEMMA, SMOLLM):
            with self.subTest(model=model.name):
                self.compare(model, "-c", "2048", "-np", "1", "-ub", "128", prompts=[LONG_PROMPT])

    def test_cache_types(self):
        # llama.cpp rounds q to 8 bits for keys in blocks, which Riffle does not: errors of its own.
        for kind, gap in [("bf16", 0.05), ("f32", 0.05), ("q8_0", 0.2), ("q4_0", 0.3), ("q5_1", 0.3), ("iq4_nl", 0.3)]:
            with self.subTest(kind=kind):
                nodes = self.compare(
                    SMOLLM, "-c", "512", "-np", "1", "-fa", "on", "-ctk", kind, "-ctv", kind, gap=gap
                )
                self.assertTrue(all(f"K {kind} " in node and f"V {kind} " in node for node in nodes))

    def test_four_sequences_unified(self):
        self.compare(GEMMA, "-c", "2048", "-np", "4", "-kvu", together=True)

    def test_four_sequences_in_streams(self):
        self.compare(GEMMA, "-c", "2048", "-np", "4", "-no-kvu", together=True)

    def test_prompt_cache(self):
        """A prompt that begins as the last one did, and one that was longer."""
        prompts = [LONG_PROMPT, LONG_PROMPT + " more than", LONG_PROMPT[:300], LONG_PROMPT]
        self.compare(SMOLLM, "-c", "2048", "-np", "1", prompts=prompts, count=16)

    def test_context_shift(self):
        self.compare(
            SMOLLM, "-c", "256", "-np", "1", "--context-shift", prompts=PROMPTS[:2], count=300, gap=0.1
        )


class Refusals(unittest.TestCase):
    """In this process, with neighbours that are not llama.cpp's."""

    def load(self, *neighbors: str, code: str) -> tuple[str, str]:
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(BUILD / BACKEND, folder)
            for neighbor in neighbors:
                shutil.copy(BUILD / "tests" / f"libggml-cpu-{neighbor}.so", folder)
            program = (
                "import ctypes\n"
                f"riffle = ctypes.CDLL({folder + '/' + BACKEND!r})\n"
                "riffle.ggml_backend_init.restype = ctypes.c_void_p\n" + code
            )
            done = subprocess.run(
                [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment()
            )
            return done.stdout.strip(), done.stderr

    def test_unknown_version(self):
        score, said = self.load("unknown_version", code="print(riffle.ggml_backend_score())")
        self.assertEqual(score, "0")
        self.assertEqual(len(said.splitlines()), 1, said)
        self.assertIn("not used: ggml is 0.25.3", said)

    def test_unknown_version_is_not_touched(self):
        registry, said = self.load("unknown_version", code="print(riffle.ggml_backend_init() is not None)")
        self.assertEqual(registry, "True")  # the neighbour's
        self.assertIn("goes on without Riffle", said)

    def test_unknown_api(self):
        registry, said = self.load("unknown_api", code="print(riffle.ggml_backend_init() is not None)")
        self.assertEqual(registry, "True")
        self.assertIn("not used: ggml's backend API is 2", said)

    def test_no_neighbor(self):
        score, _ = self.load(code="print(riffle.ggml_backend_score(), riffle.ggml_backend_init())")
        self.assertEqual(score, "0 None")

    def test_exports(self):
        """Nothing that could meet symbols of the host."""
        listed = subprocess.check_output(["nm", "-D", "--defined-only", BUILD / BACKEND], text=True)
        names = sorted(line.split()[-1] for line in listed.splitlines())
        self.assertEqual(names, ["ggml_backend_init", "ggml_backend_score", "riffle_ggml_version"])


class Nodes(unittest.TestCase):
    def test_random_nodes(self):
        folder = ROOT / "build" / "llama" / "on"
        subprocess.run([RUN, "on", "/bin/true"], check=False)  # makes the folder of links
        best, score = "", 0
        for path in sorted(folder.glob("libggml-cpu-*.so")):  # as Riffle, which takes the first of equals
            if path.name != BACKEND and (found := self.score(path)) > score:
                best, score = str(path), found
        done = subprocess.run(
            [RUN, "on", BUILD / "tests" / "llama_random_nodes", best, folder / BACKEND, "1000"],
            capture_output=True,
            text=True,
            env=environment(RIFFLE_GGML_LOG="0"),
        )
        self.assertEqual(done.returncode, 0, done.stdout[-3000:] + done.stderr[-1000:])
        print(done.stdout.strip())

    @staticmethod
    def score(path: pathlib.Path) -> int:
        done = subprocess.run(
            [RUN, "on", BUILD / "tests" / "llama_random_nodes", "score", path], capture_output=True, text=True
        )
        return int(done.stdout or 0)


if __name__ == "__main__":
    BUILD = pathlib.Path(sys.argv.pop(1)).resolve()
    unittest.main()
