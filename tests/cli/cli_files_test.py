"""The `riffle` command with files that are cut short, contradict themselves or are no .npy files.

    python3 tests/cli/cli_files_test.py build/release/riffle [unittest arguments]

Every one is refused with exit code 2 and a line that names the file, what is wrong with it and what to do.
"""

import os
import random

import cli_case
from cli_case import Cli, floats, header, raw_header


class BadFiles(Cli):
    def test_headers(self):
        data = floats([1, 2, 3, 4])
        good = header("<f4", (4,)) + data
        for content, says in (
            (b"", ["empty"]),
            (b"PK\x03\x04" + bytes(100), ["not an npy file"]),
            (b"\x93NUM", ["not an npy file"]),
            (b"\x93NUMPY", ["truncated", "6 bytes"]),
            (b"\x93NUMPY\x01\x00\x10", ["truncated"]),
            (b"\x93NUMPY\x02\x00\x10\x00\x00", ["truncated"]),
            (good[:20], ["truncated", "claims 118 bytes and 10 follow"]),
            (good[:-1], ["truncated", "(4,)", "16 bytes", "15 follow"]),
            (header("<f4", (4,)), ["truncated", "0 follow"]),
            (good + b"\0", ["17 follow", "one array"]),
            (good + good, ["one array"]),
            (raw_header("{'descr': '<f4', 'fortran_order': False, 'shape': (4,)}", length=0xFFFF) + data, ["65535"]),
            (raw_header("{}", version=(2, 0), length=0xFFFFFFFF) + data, ["4294967295"]),
            (header("<f4", (4,), version=(4, 0)) + data, ["npy format 4.0"]),
            (header("<f4", (4,), version=(1, 7)) + data, ["npy format 1.7"]),
            (header("<f4", (4,), version=(0, 0)) + data, ["npy format 0.0"]),
            (header("<f4", (2, 2), fortran=True) + data, ["Fortran order", "ascontiguousarray"]),
            (header("<f4", ()) + data[:4], ["shape ()", "reshape"]),
            (header("<f4", (4, 0)), ["(4, 0)", "empty rows"]),
            (header("<f4", (1,) * 65) + data[:4], ["more than 64 axes"]),
        ):
            with self.subTest(says=says):
                path = self.file(content)
                self.refused("topk", path, "-k", 1, says=[path, *says])

    def test_types(self):
        for descr, args, says in (
            (">f4", (), ["big-endian", "astype('<f4')"]),
            (">u2", ("--dtype", "bf16"), ["big-endian"]),
            ("|O", (), ["Python objects"]),
            ("<f8", (), ["'<f8'", "astype"]),
            ("<i8", (), ["'<i8'"]),
            ("|b1", (), ["'|b1'"]),
            ("<c8", (), ["'<c8'"]),
            ("<u2", (), ["--dtype bf16"]),
            ("<u2", ("--dtype", "f16"), ["--dtype float16", "'<u2'"]),
            ("<f4", ("--dtype", "bf16"), ["--dtype bfloat16", "'<f4'"]),
            ("", (), ["''"]),
            ("<f4" + "!" * 5000, (), ["'<f4!!!", "!...'"]),
        ):
            with self.subTest(descr=descr, args=args):
                path = self.file(header(descr, (1,)) + bytes(8))
                self.refused("topk", path, "-k", 1, *args, says=[path, *says])
        fields = raw_header("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}")
        self.refused("topk", self.file(fields + bytes(4)), "-k", 1, says=["several fields"])

    def test_control_characters_are_escaped(self):
        for descr in (b"<f4\x1b[2J", b">\x1b[2J", b"<\xc2\x9b2J"):
            path = self.file(raw_header(b"{'descr': '%s', 'fortran_order': False, 'shape': (1,)}" % descr) + bytes(4))
            self.refused("topk", path, "-k", 1, says=["2J'"])
        absent = os.path.join(self.folder, "caf\u00e9")
        for name, says in (
            ("\x1b[2J", "\\x1b[2J: "),
            ("\x7f\r", "\\x7f\\x0d: "),
            ("\x9b2J", "\\xc2\\x9b2J: "),  # one character that begins a sequence, as ESC [ do
            ("\udcff", "\\xff: "),  # a byte that is not UTF-8
        ):
            with self.subTest(name=name):
                self.refused("topk", absent + name, "-k", 1, says=[absent + says])
        good = self.file(header("<f4", (1,)) + bytes(4))
        self.refused("topk", good, "-k", 1, "--dtype", "\x1b[2J", says=["'\\x1b[2J'"])
        self.refused("topk", good, "-k", "\x1b[2J", says=["\\x1b[2J"])
        self.refused("topk", good, "-k", 1, env={"RIFFLE_TARGET": "\x1b" * 99}, says=["\\x1b...'"])

    def test_lying_shapes(self):
        for shape, says in (
            ("(4611686018427387904, 4)", ["more elements than any file"]),
            ("(9223372036854775807, 9223372036854775807)", ["more elements"]),
            ("(9223372036854775808,)", ["64 bits"]),
            ("(99999999999999999999999999,)", ["64 bits"]),
            ("(2305843009213693952, 1)", ["more elements"]),
            ("(1000000000000,)", ["truncated", "1000000000000"]),
            ("(-4,)", ["negative"]),
            ("(4)", ["malformed"]),
            ("(4, x)", ["malformed"]),
            ("(4.0,)", ["malformed"]),
            ("(,)", ["malformed"]),
            ("(4", ["malformed"]),
            ("None", ["malformed"]),
        ):
            with self.subTest(shape=shape):
                text = "{'descr': '<f4', 'fortran_order': False, 'shape': %s, }" % shape
                path = self.file(raw_header(text) + bytes(16))
                self.refused("topk", path, "-k", 1, says=[path, *says])

    def test_malformed_dictionaries(self):
        for text, says in (
            ("", ["expected a '{'"]),
            ("{", ["malformed"]),
            ("{}", ["no 'descr'"]),
            ("{'descr': '<f4'}", ["no 'fortran_order'"]),
            ("{'descr': '<f4', 'fortran_order': False}", ["no 'shape'"]),
            ("{'descr': '<f4', 'descr': '<f4'}", ["twice"]),
            ("{'descr': '<f4' 'fortran_order': False}", ["malformed"]),
            ("{'descr': '<f4', 'fortran_order': 0, 'shape': (1,)}", ["True or False"]),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (1,)} and more", ["nothing more"]),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 'x': 1}", ["unknown key 'x'"]),
            ("{'descr': '<f4, 'fortran_order': False, 'shape': (1,)}", ["malformed"]),
            ("{'descr", ["closing quote"]),
            ("__import__('os')", ["expected a '{'"]),
            (b"\xff\x00\x1b[2J" * 20, ["\\xff\\x00\\x1b[2J"]),
        ):
            with self.subTest(text=text):
                path = self.file(raw_header(text) + bytes(4))
                error = self.refused("topk", path, "-k", 1, says=[path, *says])
                self.assertNotIn("\x1b", error)

    def test_every_truncation_and_many_flips_of_a_header(self):
        content = header("<f4", (2, 3)) + floats([3, 1, 2, 6, 5, 4])
        for size in range(len(content)):
            self.refused("topk", self.file(content[:size]), "-k", 1)
        generator = random.Random(3)
        for _ in range(60):
            changed = bytearray(content)
            changed[generator.randrange(len(content) - 24)] ^= 1 << generator.randrange(8)
            done = self.run_riffle("topk", self.file(bytes(changed)), "-k", 1)
            self.assertIn(done.returncode, (0, 2), done.stderr)

    def test_what_is_no_file(self):
        missing = os.path.join(self.folder, "missing.npy")
        self.refused("topk", missing, "-k", 1, says=[missing, "No such file"])
        self.refused("topk", self.folder, "-k", 1, says=[self.folder, "not a regular file"])
        fifo = os.path.join(self.folder, "fifo.npy")
        os.mkfifo(fifo)
        self.refused("topk", fifo, "-k", 1, says=[fifo, "not a regular file"])


if __name__ == "__main__":
    cli_case.main(__doc__)
