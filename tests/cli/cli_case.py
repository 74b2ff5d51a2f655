"""Helpers of the tests of the `riffle` command: files made by hand, and calls of the command."""

import json
import math
import os
import struct
import subprocess
import sys
import tempfile
import unittest

RIFFLE = ""


def header(descr, shape, *, fortran=False, version=(1, 0)):
    text = "{'descr': %r, 'fortran_order': %r, 'shape': %r, }" % (descr, fortran, shape)
    return raw_header(text, version=version)


def raw_header(text, *, version=(1, 0), length=None):
    text = text if isinstance(text, bytes) else text.encode()
    prefix = 10 if version[0] == 1 else 12
    text += b" " * (-(prefix + len(text) + 1) % 64) + b"\n"
    length = len(text) if length is None else length
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H" if version[0] == 1 else "<I", length) + text


def floats(values):
    return struct.pack("<%df" % len(values), *values)


def bf16_words(values):
    """Floats that bfloat16 can hold, as the upper halves of their bits."""
    return b"".join(struct.pack("<f", v)[2:] for v in values)


def best(values, k):
    """The contract's order: NaN first, then descending, -0 equal to 0, then the lower index."""

    def key(i):
        return (not math.isnan(values[i]), 0.0 if math.isnan(values[i]) else -values[i], i)

    return sorted(range(len(values)), key=key)[:k]


class Cli(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def file(self, content, name="x.npy"):
        path = os.path.join(self.folder, name)
        with open(path, "wb") as f:
            f.write(content)
        return path

    def run_riffle(self, *args, env=None):
        return subprocess.run(
            [RIFFLE, *map(str, args)], capture_output=True, text=True, timeout=120, env={**os.environ, **(env or {})}
        )

    def output(self, *args, env=None):
        done = self.run_riffle(*args, env=env)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stderr, "")
        return done.stdout

    def topk(self, path, k, *args, env=None):
        return json.loads(self.output("topk", path, "-k", k, "--json", *args, env=env))

    def refused(self, *args, says=(), code=2, env=None):
        done = self.run_riffle(*args, env=env)
        self.assertEqual(done.returncode, code, done.stdout + done.stderr)
        self.assertEqual(done.stdout, "")
        self.assertTrue(done.stderr.startswith("riffle: error: "), done.stderr)
        self.assertNotRegex(done.stderr, "[\x00-\x09\x0b-\x1f\x7f-\x9f]")  # a terminal would obey them
        for part in says:
            self.assertIn(part, done.stderr)
        return done.stderr


def main(usage):
    global RIFFLE
    if len(sys.argv) < 2:
        sys.exit(usage)
    RIFFLE = os.path.abspath(sys.argv.pop(1))
    unittest.main()
