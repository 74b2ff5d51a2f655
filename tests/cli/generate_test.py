"""`riffle generate` from outside: what it prints, that it repeats itself, and everything that it must refuse.

    python3 tests/cli/generate_test.py build/release/riffle [unittest arguments]

The models are where scripts/model.sh puts them. With RIFFLE_SLOW set (sanitizers) texts are shorter, and what does not ask for a certain
model runs the smaller one.
"""

import json
import os
import shutil
import struct
import subprocess
import sys
import time

import cli_case
from cli_case import Cli

HERE = os.path.dirname(os.path.abspath(__file__))


def path_of_model(*names):
    script = os.path.join(HERE, "..", "..", "scripts", "model.sh")
    return subprocess.run([script, "--path", *names], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


MODEL = path_of_model()
CHAT_MODEL = path_of_model("smollm2")
FIXTURE = os.path.join(HERE, "..", "data", "gemma3_greedy.json")
SLOW = bool(os.environ.get("RIFFLE_SLOW"))
NEW_TOKENS = 3 if SLOW else 12
ANY_MODEL = ("--model", CHAT_MODEL) if SLOW else ()
CLOSE = 0.05  # where the two best logits are closer than this, rounding may decide


def text(value):
    value = value.encode()
    return struct.pack("<Q", len(value)) + value


def gguf(metadata, tensors=0, version=3):
    """A GGUF file without tensors' data; metadata values are str, int (uint32), or raw (type, bytes)."""
    out = b"GGUF" + struct.pack("<IQQ", version, tensors, len(metadata))
    for key, value in metadata.items():
        if isinstance(value, str):
            value = (8, text(value))
        elif isinstance(value, int):
            value = (4, struct.pack("<I", value))
        out += text(key) + struct.pack("<I", value[0]) + value[1]
    return out


class Generate(Cli):
    def generate(self, *args, env=None):
        done = self.run_riffle("generate", *args, env=env)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done

    def objects(self, *args, env=None, tokens=NEW_TOKENS):
        done = self.generate(*args, "--json", "--max-new-tokens", tokens, env=env)
        self.assertEqual(done.stderr, "")  # no progress where there is no terminal
        return [json.loads(line) for line in done.stdout.splitlines()]

    def test_json(self):
        with open(FIXTURE, encoding="ascii") as file:
            cases = [c for c in json.load(file) if "\n" not in c["prompt"] and not (SLOW and len(c["prompt"]) > 100)]
        prompts = self.file("\n".join(c["prompt"] for c in cases).encode(), "prompts.txt")
        *results, last = self.objects("--prompts", prompts)
        self.assertGreater(len(cases), 5)
        self.assertEqual([r["prompt"] for r in results], [c["prompt"] for c in cases])
        for result, case in zip(results, cases):
            self.assertEqual(list(result), ["prompt", "prompt_tokens", "tokens", "text", "finish_reason"])
            self.assertEqual(result["prompt_tokens"], case["prompt_tokens"])
            for token, wanted, gap in zip(result["tokens"], case["tokens"], case["gaps"]):
                if gap <= CLOSE:
                    break
                self.assertEqual(token, wanted, case["name"])
            ended = result["tokens"][-1] == 1
            self.assertEqual(result["finish_reason"], "stop" if ended else "length")
            self.assertLessEqual(len(result["tokens"]), NEW_TOKENS)
        self.assertEqual(list(last), ["stats"])
        stats = last["stats"]
        self.assertEqual(stats["requests"], len(cases))
        self.assertEqual(stats["prompt_tokens"], sum(c["prompt_tokens"] for c in cases))
        self.assertEqual(stats["new_tokens"], sum(len(r["tokens"]) for r in results))
        self.assertGreater(stats["prefill_tokens_per_second"], 0)
        self.assertGreater(stats["decode_tokens_per_second"], 0)
        self.assertTrue(0 < stats["pages_used"] <= stats["pages_total"])
        shares = [stats[name] for name in ("attention_share", "lm_head_share", "top_k_share")]
        self.assertTrue(all(0 < share < 1 for share in shares) and sum(shares) < 1, shares)

    def test_text(self):
        prompts = ["The capital of France is", "[1, 2]", "{}"]
        *results, _ = self.objects("--prompt", *prompts, *ANY_MODEL)
        self.assertEqual([r["prompt"] for r in results], prompts)
        done = self.generate("--prompt", prompts[0], "--prompt", *prompts[1:], "--max-new-tokens", NEW_TOKENS, *ANY_MODEL)
        blocks = [f"--- {i + 1} of 3\n{r['prompt']}{r['text']}\n" for i, r in enumerate(results)]
        self.assertEqual(done.stdout, "\n".join(blocks))
        self.assertIn("3 requests", done.stderr)
        self.assertIn("tokens/s", done.stderr)
        self.assertNotIn("\x1b", done.stdout + done.stderr)
        one = self.generate("--prompt", prompts[0], "--max-new-tokens", NEW_TOKENS, "--threads", 1, *ANY_MODEL)
        self.assertEqual(one.stdout, prompts[0] + results[0]["text"] + "\n")

    def test_sampling_is_seeded(self):
        args = ["--prompt", "Once upon a time", "Once upon a time", "--temperature", 1.2, "--top-k", 64, "--top-p", 0.95]
        args += ["--min-p", 0.001, *ANY_MODEL]
        first, again = self.objects(*args, "--seed", 3), self.objects(*args, "--seed", 3, "--threads", 1)
        self.assertEqual([r["tokens"] for r in first[:-1]], [r["tokens"] for r in again[:-1]])
        self.assertNotEqual(first[0]["tokens"], first[1]["tokens"])  # they draw from different streams
        other = self.objects(*args, "--seed", 2**64 - 1)
        self.assertNotEqual(first[0]["tokens"], other[0]["tokens"])

    def test_penalties(self):
        prompt = "one two one two one two one two"
        plain = self.objects("--prompt", prompt, *ANY_MODEL)[0]["tokens"]
        never = self.objects("--prompt", prompt, prompt, "--repetition-penalty", 100, *ANY_MODEL)
        for result in never[:-1]:
            self.assertNotEqual(result["tokens"][0], plain[0])  # the prompt had it
            self.assertEqual(len(set(result["tokens"])), len(result["tokens"]))
        self.assertEqual(never[0]["tokens"], never[1]["tokens"])
        if SLOW:
            return
        off = self.objects("--prompt", prompt, "--repetition-penalty", 1, "--presence-penalty", 0, "--frequency-penalty", "-0")
        self.assertEqual(off[0]["tokens"], plain)
        for option in ("--presence-penalty", "--frequency-penalty"):
            first = self.objects("--prompt", prompt, option, 2)[0]["tokens"]
            self.assertEqual(first[0], plain[0])  # the answer had none yet
            more = self.objects("--prompt", prompt, option, -2)[0]["tokens"]
            self.assertLessEqual(len(set(more)), len(set(first)))

    def test_filters_without_temperature_are_noted(self):
        done = self.generate("--prompt", "x", "--top-k", 5, "--max-new-tokens", 1, *ANY_MODEL)
        self.assertIn("no effect at temperature 0", done.stderr)

    def test_standard_input(self):
        done = subprocess.run([cli_case.RIFFLE, "generate", "--prompts", "-", "--json", "--max-new-tokens", "1", *ANY_MODEL],
                              input=b"a\r\nb", capture_output=True, timeout=120)  # fmt: skip
        self.assertEqual([json.loads(line).get("prompt") for line in done.stdout.splitlines()], ["a", "b", None])

    def prompts(self, *args):
        return [r["prompt"] for r in self.objects(*args, *ANY_MODEL, tokens=1)[:-1]]

    def test_any_text_is_a_prompt(self):
        texts = ["a", "++", "b", "- c", "-1", "-", "[x,y]", "{}", "=", "topk", "%%", "--prompt=d"]
        self.assertEqual(self.prompts("--prompt", *texts[:-1], "--prompt", texts[-1]), texts)
        self.assertEqual(self.prompts("--prompt", "++", "--seed", 1, "--prompt=++"), ["++", "++"])

    def test_a_file_of_an_editor(self):
        for content in (b"\xef\xbb\xbfa\nb\n", b"\xef\xbb\xbfa\r\nb\r\n\r\n", b"a\nb\n\n", b"a\nb\n\n\n"):
            self.assertEqual(self.prompts("--prompts", self.file(content, "p.txt")), ["a", "b"])

    def test_stops_at_the_end_of_a_turn(self):
        prompt = "The capital of France is"
        tokens = self.objects("--prompt", prompt, tokens=3)[0]["tokens"]
        with open(MODEL, "rb") as file:
            model = file.read()
        # An entry that is not needed is replaced by one of the same size.
        old = text("tokenizer.ggml.padding_token_id") + struct.pack("<II", 4, 0)
        new = text("tokenizer.ggml.eot_token_id") + struct.pack("<IQ", 10, tokens[1])
        self.assertEqual((len(old), model.count(old)), (len(new), 1))
        path = self.file(model.replace(old, new), "turns.gguf")
        result = self.objects("--prompt", prompt, "--model", path)[0]
        self.assertEqual((result["tokens"], result["finish_reason"]), (tokens[: tokens.index(tokens[1]) + 1], "stop"))

    def test_ends_when_nobody_reads(self):
        for more in ((), ("--json",)):
            with subprocess.Popen(
                [cli_case.RIFFLE, "generate", "--prompt", "a", "b", "--max-new-tokens", "30000" if not more else "20", *more, *ANY_MODEL],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, restore_signals=False,
            ) as process:  # restore_signals: Python ignores SIGPIPE, and the command inherits it
                if not more:
                    process.stdout.read(1)
                process.stdout.close()
                started = time.monotonic()
                error = process.stderr.read()
                self.assertEqual(process.wait(timeout=100), 1)
                self.assertLess(time.monotonic() - started, 100)
            self.assertIn("writing to standard output failed: Broken pipe", error)

    def test_not_enough_memory(self):
        if SLOW:  # the sanitizers themselves need more memory than the limits
            self.skipTest("under sanitizers")
        failed = 0
        for kib in range(100_000, 1_300_000, 200_000):  # for the file, its weights, the cache
            done = subprocess.run(
                ["sh", "-c", 'ulimit -v "$1" && exec "$0" generate --prompt a --threads 1 --max-new-tokens 1', cli_case.RIFFLE, str(kib)],
                capture_output=True, text=True, timeout=120,
            )  # fmt: skip
            if done.returncode == 0:
                break
            failed += 1
            self.assertEqual((done.returncode, done.stdout), (1, ""), done.stderr)
            self.assertTrue(done.stderr.startswith("riffle: error: "), done.stderr)
            self.assertIn("memory", done.stderr)
            self.assertNotIn("std::", done.stderr)
        self.assertGreater(failed, 0)

    def test_a_model_that_becomes_shorter(self):
        path = os.path.join(self.folder, "shrinking.gguf")
        shutil.copyfile(MODEL, path)
        with subprocess.Popen(
            [cli_case.RIFFLE, "generate", "--model", path, "--prompt", "a", "--max-new-tokens", "30000"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            process.stdout.read(1)
            os.truncate(path, 4096)
            _, error = process.communicate(timeout=100)
        self.assertEqual(process.returncode, 1)
        self.assertEqual(error, "riffle: error: %s: became shorter while it was read\n" % path)


class Refused(Cli):
    def no(self, *args, says, env=None):
        with self.subTest(args=[str(a)[:60] for a in args]):
            self.refused("generate", *args, says=says, env=env)

    def test_prompts(self):
        self.no(says=["--prompt TEXT or --prompts FILE"])
        self.no("--prompt", "a", "--prompts", "b", says=["--prompt", "excludes"])
        self.no("--prompt", says=["--prompt"])
        self.no("--prompt", "a", "", says=["--prompt 2 is empty"])
        self.no("--prompt", "a", b"b\xff".decode(errors="surrogateescape"), says=["--prompt 2 is not valid UTF-8: byte 0xff at offset 1"])
        self.no("--prompts", self.folder, says=[self.folder, "is a directory"])
        absent = os.path.join(self.folder, "absent")
        self.no("--prompts", absent, says=[absent, "No such file"])
        for content, says in (
            (b"", ["has no prompts"]),
            (b"a\n\nb\n", ["line 2 is empty"]),
            (b"\xef\xbb\xbf\nb", ["line 1 is empty"]),
            (b"\n", ["has no prompts"]),
            (b"\xef\xbb\xbf\r\n", ["has no prompts"]),
            (b"a\nb\xc3\n", ["line 2 is not valid UTF-8: byte 0xc3 at offset 1"]),
        ):
            path = self.file(content, "prompts.txt")
            self.no("--prompts", path, says=[path, *says])

    def test_prompt_longer_than_the_context(self):
        path = self.file(b"one\n" + b"word " * 40000, "prompts.txt")
        self.no("--prompts", path, says=[path, "line 2 has", "context holds 32768"])

    def test_options(self):
        for args, says in (
            (["--temperature", "-0.1"], ["--temperature -0.1"]),
            (["--temperature", "nan"], ["--temperature nan"]),
            (["--temperature", "inf"], ["--temperature inf"]),
            (["--temperature", "warm"], ["--temperature", "warm"]),
            (["--top-k", "-1"], ["--top-k -1"]),
            (["--top-k", "1.5"], ["--top-k", "1.5"]),
            (["--top-p", "1.01"], ["--top-p 1.01"]),
            (["--top-p", "-0.5"], ["--top-p -0.5"]),
            (["--top-p", "nan"], ["--top-p nan"]),
            (["--min-p", "2"], ["--min-p 2"]),
            (["--min-p", "-1"], ["--min-p -1"]),
            (["--repetition-penalty", "0"], ["--repetition-penalty 0 is not a finite number above 0; 1 is off"]),
            (["--repetition-penalty", "-1.5"], ["--repetition-penalty -1.5"]),
            (["--repetition-penalty", "inf"], ["--repetition-penalty inf"]),
            (["--repetition-penalty", "nan"], ["--repetition-penalty nan"]),
            (["--presence-penalty", "2.5"], ["--presence-penalty 2.5 is not -2 to 2; 0 is off"]),
            (["--presence-penalty", "much"], ["--presence-penalty", "much"]),
            (["--frequency-penalty", "-2.01"], ["--frequency-penalty -2.01 is not -2 to 2; 0 is off"]),
            (["--frequency-penalty", "nan"], ["--frequency-penalty nan"]),
            (["--seed", "-1"], ["--seed", "-1"]),
            (["--seed", "18446744073709551616"], ["--seed"]),
            (["--max-new-tokens", "0"], ["--max-new-tokens 0"]),
            (["--max-new-tokens", "-5"], ["--max-new-tokens -5"]),
            (["--threads", "-1"], ["--threads -1"]),
            (["--threads", "5000"], ["--threads 5000"]),
            (["--frobnicate"], ["--frobnicate"]),
        ):
            self.no("--prompt", "a", *args, says=says)

    def test_models(self):
        absent = os.path.join(self.folder, "absent.gguf")
        self.no("--prompt", "a", "--model", absent, says=[absent, "No such file"])
        self.no("--prompt", "a", "--model", self.folder, says=[self.folder, "not a regular file"])
        self.no("--prompt", "a", env={"RIFFLE_CACHE": self.folder}, says=["no model at", self.folder, "scripts/model.sh"])
        with open(MODEL, "rb") as file:
            head = file.read(8 << 20)
        for content, says in (
            (b"", ["is empty"]),
            (b"hello", ["not a GGUF file"]),
            (head[:2], ["not a GGUF file"]),
            (head[:20], ["truncated"]),
            (head[:300], ["truncated"]),
            (head[: 1 << 20], ["tokenizer.ggml.", "truncated"]),
            (head[:6525112], ["truncated"]),
            (head, ["tensor", "truncated"]),
            (gguf({"general.architecture": "llama"}), ["llama"]),
            (gguf({}), ["general.architecture"]),
            (gguf({"split.count": (2, b"\2\0"), "split.no": (2, b"\0\0")}), ["is part 1 of 2"]),
            (gguf({"general.architecture": 3}), ["general.architecture"]),
            (gguf({"general.architecture": "gemma3"}), ["gemma3."]),
            (gguf({"general.architecture": "gemma3"}, version=1), ["version 1"]),
            (gguf({"x": (9, struct.pack("<IQ", 8, 2**60))}), ["\"x\"", "truncated"]),
            (gguf({}, tensors=2**63), ["truncated"]),
        ):
            path = self.file(content, "model.gguf")
            self.no("--prompt", "a", "--model", path, says=[path, *says])


if __name__ == "__main__":
    cli_case.main(__doc__)
