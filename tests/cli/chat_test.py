"""`riffle generate` as a conversation, by chat templates and on a terminal, and its options for stop texts, contexts, formats of keys and
values, log-probabilities and lists of models.

    python3 tests/cli/chat_test.py build/release/riffle [unittest arguments]

The models are where scripts/model.sh puts them. With RIFFLE_SLOW set (sanitizers) texts are shorter.
"""

import json
import math
import os
import pty
import select
import struct
import subprocess
import time

import cli_case
from cli_case import Cli
from generate_test import ANY_MODEL, CHAT_MODEL, MODEL, NEW_TOKENS, SLOW, gguf, text

WAIT = 300 if SLOW else 100


class Options(Cli):
    def objects(self, *args, tokens=NEW_TOKENS):
        done = self.run_riffle("generate", "--json", "--max-new-tokens", tokens, *args, *ANY_MODEL)
        self.assertEqual(done.returncode, 0, done.stderr)
        return [json.loads(line) for line in done.stdout.splitlines()]

    def test_stop_texts(self):
        prompts = ["The capital of France is", "1, 2, 3,", "Once upon a time"]
        n = 8  # enough for the stop text, in a short test too
        whole = self.objects("--prompt", *prompts, tokens=n)[:-1]
        stop = whole[1]["text"][4:6]  # in the middle of the second text
        self.assertEqual(len(stop), 2)
        cut = self.objects("--prompt", *prompts, "--stop", "no such text", "--stop", stop, tokens=n)[:-1]
        for one, all_of_it in zip(cut, whole):
            text_before = all_of_it["text"].split(stop)[0]
            self.assertEqual(one["text"], text_before)
            self.assertEqual(one["tokens"], all_of_it["tokens"][: len(one["tokens"])])
            if stop in all_of_it["text"]:
                self.assertEqual(one["finish_reason"], "stop")
        self.assertLess(len(cut[1]["tokens"]), len(whole[1]["tokens"]))
        shown = self.run_riffle("generate", "--max-new-tokens", n, "--prompt", prompts[1], "--stop", stop, *ANY_MODEL)
        self.assertEqual(shown.stdout, prompts[1] + cut[1]["text"] + "\n")
        for odd in ("++", "--json", "{}", "[a]", "-1")[: 1 if SLOW else 5]:  # any text is a stop text
            same = self.objects("--stop", odd, "--prompt", prompts[0], tokens=n)
            self.assertEqual(same[0]["tokens"], whole[0]["tokens"])

    def test_log_probabilities(self):
        args = ["--prompt", "The capital of France is", "--temperature", "1.5", "--seed", "3"]
        plain, _ = self.objects(*args)
        with_logs, _ = self.objects(*args, "--log-probabilities")
        logs = with_logs.pop("log_probabilities")
        self.assertEqual(with_logs, plain)
        self.assertEqual(len(logs), len(plain["tokens"]))
        self.assertTrue(all(-40 < log <= 1e-5 for log in logs), logs)
        best = self.objects(*args[:2], "--log-probabilities")[0]["log_probabilities"]
        self.assertTrue(all(math.log(1 / 262144) < log <= 1e-5 for log in best), best)

    def test_context_and_formats_of_keys_and_values(self):
        prompt = "The capital of France is"
        short, stats = self.objects("--prompt", prompt, "--context", "9", tokens=8)
        self.assertEqual(short["prompt_tokens"] + len(short["tokens"]), 10)  # the last token takes no room
        self.assertEqual(short["finish_reason"], "length")
        f16 = self.objects("--prompt", prompt)[0]["text"]
        for kind in ("q8_0", "f32", "f16", "bf16")[: 1 if SLOW else 4]:
            self.assertEqual(self.objects("--prompt", prompt, "--kv", kind)[0]["text"], f16, kind)
        for kind in ("e4m3", "int8", "q4_0", "e5m2", "q5_1", "q5_0", "q4_1", "iq4_nl")[: 2 if SLOW else 8]:
            self.assertGreater(len(self.objects("--prompt", prompt, "--kv", kind)[0]["text"]), 5, kind)
        e4m3, fp8 = (self.objects("--prompt", prompt, "--kv", kind)[0]["tokens"] for kind in ("e4m3", "fp8"))
        self.assertEqual(fp8, e4m3)

    def test_list_models(self):
        done = self.run_riffle("generate", "--list-models")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertIn(MODEL + "\n", done.stdout)
        self.assertIn("(gemma3), 253 MB, context 32768: --prompt\n", done.stdout)
        self.assertIn("(llama), 98 MB, context 8192: --chat (ChatML)\n", done.stdout)
        self.assertIn("can be run: gemma2, gemma3, llama", done.stdout)
        folder = os.path.join(self.folder, "models")
        os.mkdir(folder)
        empty = self.run_riffle("generate", "--list-models", env={"RIFFLE_CACHE": self.folder})
        self.assertIn(f"There are no models in {folder}", empty.stdout)
        with open(os.path.join(folder, "bad.gguf"), "wb") as file:
            file.write(b"GGUF")
        os.symlink(MODEL, os.path.join(folder, "good.gguf"))
        listed = self.run_riffle("generate", "--list-models", "--json", env={"RIFFLE_CACHE": self.folder})
        bad, good = [json.loads(line) for line in listed.stdout.splitlines()]
        self.assertIn("truncated", bad["fault"])
        self.assertEqual((good["architecture"], good["context"], good["use"]), ("gemma3", 32768, "--prompt"))

    def test_refusals(self):
        for args, says in (
            (["--stop", "", "--prompt", "a"], ["--stop 1 is empty"]),
            (["--stop", b"\xff".decode(errors="surrogateescape"), "--prompt", "a"], ["--stop 1 is not valid UTF-8"]),
            (["--prompt", "a", "--context", "0"], ["--context 0 is not 1 or more"]),
            (["--prompt", "a", "--context", "99999"], ["--context 99999", "more than the 32768 tokens", MODEL]),
            (["--prompt", "a b c", "--context", "2"], ["--prompt 1 has", "but the context holds 2"]),
            (["--prompt", "a", "--kv", "f8"], ["--kv f8 is none of f32, f16, bf16, e4m3"]),
            (["--prompt", "a", "--log-probabilities"], ["add --json"]),
            (["--prompt", "a", "--system", "b"], ["--system", "needs --chat"]),
            (["--list-models", "--prompt", "a"], ["--list-models goes without"]),
            (["--chat", "--model", MODEL], [MODEL, "has no tokenizer.chat_template"]),
            (["--chat", "--prompt", "a", "--model", MODEL], ["has no tokenizer.chat_template"]),
        ):
            with self.subTest(args=args):
                error = self.refused("generate", *args, says=says)
                self.assertEqual(error.count("\n"), 1, error)

    def test_templates_that_are_not_known(self):
        with open(CHAT_MODEL, "rb") as file:
            model = file.read()
        start = model.index(text("tokenizer.chat_template")) + len(text("tokenizer.chat_template")) + 4 + 8
        end = start + int.from_bytes(model[start - 8 : start], "little")
        changed = model[:start] + model[start:end].replace(b"<|im_start|>", b"<|xx_start|>") + model[end:]
        path = self.file(changed, "other.gguf")
        says = ['its tokenizer.chat_template, "{% for message in messages %}', "is of no known family; known are ChatML, Gemma and Llama 3"]
        error = self.refused("generate", "--chat", "--prompt", "a", "--model", path, says=[path, *says])
        self.assertEqual(error.count("\n"), 1, error)

    def test_files_that_cannot_be_run(self):
        """One line each, which names what is wrong and what could be done."""
        base = {"general.architecture": "llama"}
        for metadata, says in (
            ({"general.architecture": "mamba"}, ["general.architecture is 'mamba'; this program runs gemma2, gemma3, llama, qwen2, qwen3"]),
            (base, ["llama.embedding_length"]),
            ({**base, "llama.embedding_length": 100}, ["llama.embedding_length = 100 is not a multiple of 32"]),
            ({"general.architecture": "llama\n"}, ["'llama\\x0a'"]),
        ):
            path = self.file(gguf(metadata), "model.gguf")
            error = self.refused("generate", "--prompt", "a", "--model", path, says=[path, *says])
            self.assertEqual(error.count("\n"), 1, error)
        with open(CHAT_MODEL, "rb") as file:
            model = file.read()
        norm = text("output_norm.weight") + struct.pack("<IQI", 1, 576, 0)
        block_count = text("llama.block_count") + struct.pack("<I", 4)
        embedding = text("token_embd.weight") + struct.pack("<IQQ", 2, 576, 49152)
        for old, new, says in (
            (norm, norm.replace(struct.pack("<Q", 576), struct.pack("<Q", 544)), ['tensor "output_norm.weight" is of shape [544], not [576]']),
            (norm, norm[:-4] + struct.pack("<I", 23), ["output_norm.weight", "is of type IQ4_XS, which is not supported; known are F32, F16"]),
            (text("llama.block_count"), text("llama.block_caunt"), ['has no metadata "llama.block_count"']),
            (block_count + struct.pack("<I", 30), block_count + struct.pack("<I", 29), ['has a tensor "blk.29.', "llama with 29 layers"]),
            (block_count + struct.pack("<I", 30), block_count + struct.pack("<I", 31), ['has no tensor "blk.30.attn_q.weight"']),
            (embedding, embedding[:-16] + embedding[-8:] + embedding[-16:-8], ['"token_embd.weight" is of shape [49152, 576], not [576, ']),
            (text("gpt2"), text("bert"), ['its tokenizer is "bert"; "llama"', '"t5"', '"gpt2"']),
            (text("smollm"), text("smallm"), ['its pre-tokenizer is "smallm"; known are gpt-2']),
        ):
            self.assertEqual((model.count(old), len(new)), (1, len(old)), old)
            path = self.file(model.replace(old, new), "changed.gguf")
            error = self.refused("generate", "--prompt", "a", "--model", path, says=[path, *says])
            self.assertEqual(error.count("\n"), 1, error)
        big_endian = b"GGUF" + (3).to_bytes(4, "big") + bytes(16)
        error = self.refused("generate", "--prompt", "a", "--model", self.file(big_endian), says=["big-endian", "gguf-convert-endian"])
        self.assertEqual(error.count("\n"), 1, error)


class Chat(Cli):
    def chat(self, stdin, *args):
        return subprocess.run([cli_case.RIFFLE, "generate", "--chat", *map(str, args)], input=stdin, capture_output=True, text=True, timeout=WAIT)

    def test_prompts_are_questions(self):
        args = ["--max-new-tokens", NEW_TOKENS, "--json"]
        done = self.chat(None, "--prompt", "What is the capital of France?", "Say hello.", *args)
        self.assertEqual(done.returncode, 0, done.stderr)
        first, second, _ = [json.loads(line) for line in done.stdout.splitlines()]
        spelled = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n" \
                  "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"  # fmt: skip
        raw = self.run_riffle("generate", "--model", CHAT_MODEL, "--prompt", spelled, *args)
        wanted = json.loads(raw.stdout.splitlines()[0])
        self.assertEqual(first["prompt_tokens"], wanted["prompt_tokens"])
        self.assertEqual(first["tokens"], wanted["tokens"])
        self.assertEqual(first["prompt"], "What is the capital of France?")
        self.assertNotEqual(second["text"], first["text"])
        pirate = self.chat(None, "--prompt", "Say hello.", "--system", "You are a pirate.", *args)
        self.assertNotEqual(json.loads(pirate.stdout.splitlines()[0])["prompt_tokens"], second["prompt_tokens"])
        shown = self.chat(None, "--prompt", "Say hello.", "--max-new-tokens", NEW_TOKENS)
        self.assertEqual(shown.stdout, "Say hello.\n" + second["text"] + "\n")

    def test_a_conversation_from_a_pipe(self):
        n = NEW_TOKENS
        done = self.chat("My name is Ada.\n\nWhat is my name?\r\nlast without newline", "--max-new-tokens", n, "--json")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        self.assertEqual([a["prompt"] for a in answers], ["My name is Ada.", "What is my name?", "last without newline"])
        tokens = [a["prompt_tokens"] for a in answers]
        self.assertGreater(tokens[1], tokens[0] + len(answers[0]["tokens"]) - 2)  # the history is part of it
        self.assertGreater(tokens[2], tokens[1])
        alone = self.chat("What is my name?\n", "--max-new-tokens", n, "--json")
        self.assertLess(json.loads(alone.stdout)["prompt_tokens"], tokens[1])
        plain = self.chat("My name is Ada.\n", "--max-new-tokens", n)
        self.assertEqual((plain.stdout, plain.stderr), (answers[0]["text"] + "\n", ""))

    def test_penalties(self):
        done = self.chat("Say one two three.\nAgain.\n", "--repetition-penalty", 100, "--max-new-tokens", NEW_TOKENS, "--json")
        self.assertEqual(done.returncode, 0, done.stderr)
        answers = [json.loads(line)["tokens"] for line in done.stdout.splitlines()]
        self.assertEqual(len(answers), 2)
        said = answers[0] + answers[1]
        self.assertEqual(len(set(said)), len(said))  # the first answer is part of the second prompt

    def test_old_turns_make_room(self):
        count, context = (4, 80) if SLOW else (8, 150)  # a turn takes some 25 tokens
        turns = "".join(f"Tell me about the number {i}, and what you know of it.\n" for i in range(count))
        done = self.chat(turns, "--max-new-tokens", 8, "--context", context, "--json")
        self.assertEqual(done.returncode, 0, done.stderr)
        tokens = [json.loads(line)["prompt_tokens"] for line in done.stdout.splitlines()]
        self.assertEqual(len(tokens), count)
        self.assertTrue(all(n <= context - 8 for n in tokens), tokens)
        self.assertLess(tokens[-1], sum(tokens[:2]) + 100)
        long = self.chat("word " * 500 + "\n", "--context", 150)
        self.assertEqual((long.returncode, long.stdout), (2, ""))
        self.assertIn("standard input: line 1 is too long for a context of 150 tokens", long.stderr)

    def test_a_line_that_is_not_utf8(self):
        done = subprocess.run([cli_case.RIFFLE, "generate", "--chat", "--max-new-tokens", "1"], input=b"a\nb\xff\n",
                              capture_output=True, timeout=WAIT)  # fmt: skip
        self.assertEqual(done.returncode, 2)
        self.assertIn(b"standard input: line 2 is not valid UTF-8", done.stderr)


class Terminal(Cli):
    """On a pseudo-terminal."""

    def start(self, *args, chat=True):
        pid, self.terminal = pty.fork()
        if pid == 0:
            os.execv(cli_case.RIFFLE, [cli_case.RIFFLE, "generate", *(["--chat"] if chat else []), *map(str, args)])
        self.addCleanup(os.close, self.terminal)
        self.pid = pid
        self.seen = ""

    def read_until(self, done):
        """What has come when done() is true of it."""
        seen = ""
        end = time.monotonic() + WAIT
        while not done(seen):
            self.assertLess(time.monotonic(), end, f"no end of {seen!r}")
            if select.select([self.terminal], [], [], 1)[0]:
                try:
                    part = os.read(self.terminal, 65536)
                except OSError:  # Linux's way to say that the other side is closed
                    break
                if not part:
                    break
                seen += part.decode(errors="replace")
        self.seen += seen
        return seen

    def write(self, content):
        os.write(self.terminal, content)

    def test_conversation(self):
        self.start("--max-new-tokens", "6000")
        greeting = self.read_until(lambda s: s.endswith("> "))
        self.assertIn("(ChatML)", greeting)
        self.assertIn("Ctrl-C stops an answer, Ctrl-D ends the conversation.", greeting)
        # The answer is long enough to be stopped.
        self.write(b"Write a very long story about a fox. Never stop.\n")
        self.read_until(lambda s: len(s) > 90)
        self.write(b"\x03")
        stopped = time.monotonic()
        answer = self.read_until(lambda s: s.endswith("\n> "))
        self.assertLess(time.monotonic() - stopped, 30)
        self.assertIn("\n> ", answer)
        # At the prompt Ctrl-C drops the line and does not end the program either.
        self.write(b"half a que\x03")
        self.assertIn("(Ctrl-D ends the conversation)", self.read_until(lambda s: s.endswith("> ") and "Ctrl-D" in s))
        self.write(b"\n")  # an empty line is no question
        self.read_until(lambda s: s.endswith("> "))
        self.write(b"Say hi.\n")
        self.read_until(lambda s: len(s) > 20)
        self.write(b"\x03")
        self.read_until(lambda s: s.endswith("\n> "))
        self.write(b"\x04")
        self.read_until(lambda s: False)
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]), 0, self.seen)

    def test_control_characters_are_not_obeyed(self):
        self.start("--prompt", "a\x1b[31m\x9b31m\u00e9\x7f", "--max-new-tokens", 1, *ANY_MODEL, chat=False)
        seen = self.read_until(lambda s: False)
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]), 0)
        self.assertIn("a\ufffd[31m\ufffd31m\u00e9\ufffd", seen)

    def test_a_fault_of_the_start_is_one_line(self):
        self.start("--model", MODEL)
        seen = self.read_until(lambda s: False)
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]), 2)
        self.assertEqual(seen.count("\n"), 1, seen)


if __name__ == "__main__":
    cli_case.main(__doc__)
