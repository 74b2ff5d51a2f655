#!/usr/bin/env python3
"""libggml-cpu-riffle.so in an unmodified llama.cpp: tokens, refusals, and random nodes.

    llama_test.py BUILD_FOLDER [unittest arguments]

`make test-llama` builds the programs, fetches llama.cpp and runs this.
"""

import array
import math
import mmap
import os
import pathlib
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import unittest

from llama_server import ROOT, RUN, Server, cache_folder, environment

CACHE = cache_folder()
GEMMA = CACHE / "models" / "gemma-3-270m-q4_k_m.gguf"
SMOLLM = CACHE / "models" / "smollm2-135m-instruct-q4_1.gguf"
# llama.cpp's threads meet hundreds of times a token: they shall not spin where others work on the same CPUs.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
BUILD = pathlib.Path()  # set by main
BACKEND = "libggml-cpu-riffle.so"

PROMPTS = [
    "The capital of France is",
    "Water boils at",
    "def fibonacci(n):\n    ",
    "The first president of the United States was",
]
TEXT = "The clerk writes sums into a book. " + " ".join(f"Item {i} costs {i * 7 % 13} coins." for i in range(30))
GAP = 0.05  # of two logits: what the roundings of different settings may exchange
LONG_PROMPT = " ".join(f"Item {i} costs {i * 7 % 13} coins." for i in range(90)) + " Item 91 costs"


def f32_model(name: str) -> pathlib.Path:
    """A model with its weights in f32, so that llama.cpp multiplies without rounding activations. Made once, by llama-quantize."""
    source = {"gemma": GEMMA, "smollm2": SMOLLM}[name]
    target = ROOT / "build" / "llama" / f"{name}-f32.gguf"
    if not target.exists():
        part = target.with_suffix(".part")
        command = [RUN, "off", "llama-quantize", "--allow-requantize", source, part, "F32", "2"]
        subprocess.run([*map(str, command)], check=True, capture_output=True)
        part.rename(target)
    return target


def read_logits(path: pathlib.Path, rows: int) -> list[list[float]]:
    """The last rows of the tensor `logits` in a file of llama-results, which ends with it."""
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    # Its description: the name, 2, both extents (the tokens come first, as vocabulary x tokens is stored), type, offset.
    at = data.find(struct.pack("<Q6s", 6, b"logits")) + 8 + 6
    dims, tokens, vocabulary, kind, _ = struct.unpack_from("<IQQIQ", data, at)
    assert (dims, kind) == (2, 0) and tokens >= rows
    end = len(data) - len(data) % 4
    size = 4 * tokens * vocabulary
    start = next(start for start in range(end - size, end - size - 32, -4) if start % 32 == 0)
    numbers = array.array("f", data[start + 4 * vocabulary * (tokens - rows) : start + size])
    return [list(numbers[i * vocabulary : (i + 1) * vocabulary]) for i in range(rows)]


def distance(a: list[list[float]], b: list[list[float]]) -> float:
    """Root of the mean of squares."""
    count = len(a) * len(a[0])
    return math.sqrt(sum(math.dist(x, y) ** 2 for x, y in zip(a, b, strict=True)) / count)


class Logits(unittest.TestCase):
    """Logits of every token of a text, of llama-results: with the file, and by both of llama.cpp's own settings.

    The truth is llama.cpp's own, with weights and caches in f32 and flash attention off. Any other setting rounds somewhere, so the
    file is held to what llama.cpp's own settings are: it must not be farther from the truth than the farther of them.
    """

    ROWS = 48  # compared, from the last backwards

    def setUp(self):
        self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        (self.folder / "text").write_text(TEXT)

    def logits(self, which: str, model: pathlib.Path, *arguments: str) -> list[list[float]]:
        out = self.folder / "logits.gguf"
        command = [RUN, which, "llama-results", "-m", model, "-f", self.folder / "text", "-o", out, "-t", "2", "-c", "1024"]
        done = subprocess.run([*map(str, command), *arguments], capture_output=True, text=True, env=environment())
        self.assertEqual(done.returncode, 0, done.stderr[-2000:])
        if which == "on":
            self.assertRegex(done.stderr, r"riffle: q .*: Riffle")
        return read_logits(out, self.ROWS)

    def check(self, model: pathlib.Path, truth: list[list[float]], *arguments: str, own: str = "both") -> None:
        got = self.logits("on", model, *arguments)
        llama = [self.logits("off", model, *arguments, "-fa", flash) for flash in ("on", "off")[: 2 if own == "both" else 1]]
        error = distance(got, truth)
        errors = [distance(other, truth) for other in llama]
        print(f"{model.stem} {' '.join(arguments)}: {error:.2g}, llama.cpp's own {errors}", file=sys.stderr)
        self.assertLess(error, 1.1 * max(errors))
        # The likeliest token is the same wherever it is so by more than any rounding.
        for i, (row, true) in enumerate(zip(got, truth, strict=True)):
            best = max(range(len(row)), key=row.__getitem__)
            self.assertLess(max(true) - true[best], GAP, f"the likeliest token of row {i}")

    def test_f32_weights(self):
        """Prefill, in batches of 512 and 100 tokens, and decode, which is one of 1."""
        for name in ("smollm2", "gemma"):
            model = f32_model(name)
            truth = self.logits("off", model, "-fa", "off", "-ctk", "f32", "-ctv", "f32")
            for batch in ("512", "100", "1"):
                with self.subTest(model=name, batch=batch):
                    self.check(model, truth, "-ub", batch)

    def test_cache_types(self):
        model = f32_model("smollm2")
        truth = self.logits("off", model, "-fa", "off", "-ctk", "f32", "-ctv", "f32")
        for kind in ("f32", "bf16", "q8_0"):
            with self.subTest(kind=kind):
                self.check(model, truth, "-ctk", kind, "-ctv", kind, own="default")

    def test_coarse_cache_types(self):
        """Types whose rounding alone changes tokens: it makes most of the error, and the smallest difference is rounded to another code.

        So either can be the nearer one by chance, by a fifth on this text; that nodes are right is what test_random_nodes shows.
        """
        model = f32_model("smollm2")
        truth = self.logits("off", model, "-fa", "off", "-ctk", "f32", "-ctv", "f32")
        for kind in ("q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"):
            with self.subTest(kind=kind):
                arguments = ("-ctk", kind, "-ctv", kind)
                error = distance(self.logits("on", model, *arguments), truth)
                own = distance(self.logits("off", model, *arguments), truth)
                print(f"{kind}: {error:.2g}, llama.cpp's own {own:.2g}", file=sys.stderr)
                self.assertLess(error, 1.5 * own)

    def test_weights_in_blocks(self):
        """llama.cpp rounds activations to 8 bits for these: any difference, however small, becomes as large as that rounding.

        So any two settings are about as far from each other, and which of them are nearer is chance: all are measured from the truth.
        """
        for model in (SMOLLM, GEMMA):
            with self.subTest(model=model.name):
                truth = self.logits("off", model, "-fa", "off", "-ctk", "f32", "-ctv", "f32")
                own = [distance(self.logits("off", model, "-fa", flash), truth) for flash in ("on", "off")]
                error = distance(self.logits("on", model, "-fa", "on"), truth)
                print(f"{model.stem}: {error:.2g}, llama.cpp's own {own}", file=sys.stderr)
                self.assertLess(error, 1.25 * max(own))


class Tokens(unittest.TestCase):
    """Greedy tokens of llama-server, by models of f32 weights: no rounding of activations hides what is wrong, or looks like it."""

    def compare(self, model, *arguments, gap=GAP, prompts=PROMPTS, count=24, together=False, which="on", draft=()):
        """Tokens with and without the file, up to the first that was nearly another one.

        The server with the file has a draft model by the arguments `draft`; the other one makes every token by itself.
        """
        answers = {}
        for with_file in (False, True):
            more = draft if with_file else ()
            with Server(which if with_file else "off", model, *arguments, *more) as server:
                if together:
                    answers[with_file] = server.all_at_once(prompts, count)
                else:
                    answers[with_file] = [server.tokens(prompt, count) for prompt in prompts]
            log = server.text()
            if with_file:
                self.assertIn("attention by Riffle", log)
                nodes = re.findall(r"riffle: (q .*: Riffle)", log)
                self.assertTrue(nodes, "no node was computed by Riffle:\n" + log[-2000:])
                self.assertNotIn("attention failed", log)
                if draft:
                    counts = re.findall(r"draft acceptance = .*\(\s*(\d+) accepted /\s*(\d+) generated\)", log)
                    accepted, drafted = (sum(int(count[i]) for count in counts) for i in range(2))
                    print(f"{accepted} of {drafted} drafted tokens accepted", file=sys.stderr)
                    self.assertGreater(accepted, len(prompts))
                    self.assertLess(accepted, drafted, "no drafted token was taken back out of the cache")
            else:
                self.assertNotIn("riffle:", log)
        same = 0
        for prompt, off, on in zip(prompts, answers[False], answers[True], strict=True):
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
        self.compare(f32_model("gemma"), "-c", "1024", "-np", "1", prompts=PROMPTS[:2])

    def test_smollm(self):
        self.compare(f32_model("smollm2"), "-c", "1024", "-np", "1")

    def test_long_prompt(self):
        """Prefill in several batches, and the ring caches of Gemma's sliding windows."""
        for name in ("gemma", "smollm2"):
            with self.subTest(model=name):
                self.compare(f32_model(name), "-c", "2048", "-np", "1", "-ub", "128", prompts=[LONG_PROMPT])

    def test_cache_types(self):
        # llama.cpp rounds q to 8 bits for keys in blocks, which Riffle does not: that makes the gap wider. In 4 bits the cache's own
        # rounding exchanges tokens: Logits has those.
        for kind, gap in [("bf16", GAP), ("f32", GAP), ("q8_0", 0.2)]:
            with self.subTest(kind=kind):
                nodes = self.compare(
                    f32_model("smollm2"), "-c", "512", "-np", "1", "-fa", "on", "-ctk", kind, "-ctv", kind,
                    gap=gap, prompts=PROMPTS[:2],
                )
                kept = "f16" if kind == "f32" else kind  # llama.cpp's graph converts f32 for flash attention
                self.assertTrue(all(f"K {kept} " in node and f"V {kept} " in node for node in nodes))

    def test_four_sequences(self):
        for cache in ("-kvu", "-no-kvu"):
            with self.subTest(cache=cache):
                self.compare(f32_model("smollm2"), "-c", "2048", "-np", "4", cache, together=True)

    def test_eight_clients(self):
        """Prompts of many lengths, that begin and end at any time, on four sequences of one cache."""
        prompts = [LONG_PROMPT[: 60 + 170 * i] + PROMPTS[i % 4] for i in range(8)]
        self.compare(f32_model("smollm2"), "-c", "4096", "-np", "4", "-ub", "64", prompts=prompts, count=40, together=True)

    def test_prompt_cache(self):
        """A prompt that begins as the last one did, and one that was longer."""
        prompts = [LONG_PROMPT, LONG_PROMPT + " more than", LONG_PROMPT[:300], LONG_PROMPT]
        self.compare(f32_model("smollm2"), "-c", "2048", "-np", "1", prompts=prompts, count=16)

    def test_draft(self):
        """Drafts, as batches of several tokens of which some are taken back: the target's own tokens, whatever is drafted.

        The draft model is the same model with coarser weights. It has a context of its own on the same threads.
        """
        cases = [
            ("one sequence", ["-c", "1024", "-np", "1"], {}),
            ("four of one cache", ["-c", "2048", "-np", "4", "-kvu", "-fa", "on", "-ctkd", "q8_0", "-ctvd", "q8_0"], {"together": True}),
            ("a prompt cache", ["-c", "2048", "-np", "1"], {"prompts": [LONG_PROMPT, LONG_PROMPT[:300] + PROMPTS[2], LONG_PROMPT]}),
        ]
        draft = ("-md", SMOLLM, "--spec-type", "draft-simple", "--spec-draft-n-max", "6")
        for name, arguments, more in cases:
            with self.subTest(case=name):
                self.compare(f32_model("smollm2"), *arguments, draft=draft, count=32, **more)

    def test_draft_for_sliding_windows(self):
        """Taken back from ring caches, with a prompt that is longer than the window."""
        draft = ("-md", GEMMA, "--spec-type", "draft-simple", "--spec-draft-n-max", "4")
        self.compare(f32_model("gemma"), "-c", "2048", "-np", "1", draft=draft, prompts=[LONG_PROMPT, PROMPTS[0]], count=32)

    def test_context_shift(self):
        self.compare(f32_model("smollm2"), "-c", "256", "-np", "1", "--context-shift", prompts=PROMPTS[:2], count=300)


class Accelerator(unittest.TestCase):
    """The file as a device of its own, by GGML_BACKEND_PATH, as builds without CPU variants have it."""

    def test_backend_ops(self):
        """llama.cpp's own test: FLASH_ATTN_EXT by the device and by its CPU backend."""
        command = [RUN, "beside", "test-backend-ops", "test", "-b", "Riffle", "-o", "FLASH_ATTN_EXT", "-p", "hsk=(64|192|576),.*kv=(113|512),nb=(1|3),"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment(RIFFLE_GGML_LOG="0"))
        self.assertEqual(done.returncode, 0, done.stdout[-3000:] + done.stderr[-1000:])
        passed = re.search(r"(\d+)/(\d+) tests passed", done.stdout)
        self.assertIsNotNone(passed, done.stdout[-1000:])
        self.assertGreater(int(passed[1]), 100)
        self.assertEqual(passed[1], passed[2])

    def test_top_k(self):
        command = [RUN, "beside", "test-backend-ops", "test", "-b", "Riffle", "-o", "TOP_K"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment())
        self.assertEqual(done.returncode, 0, done.stdout[-3000:] + done.stderr[-1000:])
        self.assertIn("riffle: top ", done.stderr)

    def test_tokens(self):
        """With -fa on. llama.cpp's own `auto` turns flash attention off where a device other than the CPU's would compute it."""
        Tokens.compare(self, f32_model("smollm2"), "-c", "1024", "-np", "1", "-fa", "on", prompts=PROMPTS[:2], which="beside")

    def test_auto(self):
        with Server("beside", SMOLLM, "-c", "512", "-np", "1") as server:
            self.assertEqual(len(server.tokens(PROMPTS[0], 4)), 4)
        self.assertIn("Flash Attention", server.text())


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
    def run_program(self, name: str, cases: int) -> None:
        folder = ROOT / "build" / "llama" / "on"
        subprocess.run([RUN, "on", "/bin/true"], check=False)  # makes the folder of links
        best, score = "", 0
        for path in sorted(folder.glob("libggml-cpu-*.so")):  # as Riffle, which takes the first of equals
            if path.name != BACKEND and (found := self.score(path)) > score:
                best, score = str(path), found
        command = [RUN, "on", BUILD / "tests" / f"llama_{name}", best, folder / BACKEND, str(cases)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment(RIFFLE_GGML_LOG="0"))
        self.assertEqual(done.returncode, 0, done.stdout[-3000:] + done.stderr[-1000:])
        print(done.stdout.strip(), file=sys.stderr)

    def test_random_nodes(self):
        self.run_program("random_nodes", 1000)

    def test_top_k_nodes(self):
        self.run_program("top_k_nodes", 300)

    @staticmethod
    def score(path: pathlib.Path) -> int:
        done = subprocess.run(
            [RUN, "on", BUILD / "tests" / "llama_random_nodes", "score", path], capture_output=True, text=True
        )
        return int(done.stdout or 0)


if __name__ == "__main__":
    BUILD = pathlib.Path(sys.argv.pop(1)).resolve()
    unittest.main()
