"""The `riffle` command from outside: what it prints, what it refuses, how it exits.

    python3 tests/cli_test.py build/release/riffle [unittest arguments]

Needs nothing but Python. Files are made by hand, byte by byte, the hostile ones too.
"""

import json
import math
import os
import random
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
    """The upper halves of floats that have nothing in the lower ones."""
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
        for part in says:
            self.assertIn(part, done.stderr)
        return done.stderr


class TopK(Cli):
    def check(self, values, rows, k, result):
        n = len(values) // rows
        self.assertEqual(len(result["rows"]), rows)
        for r, row in enumerate(result["rows"]):
            line = values[r * n : (r + 1) * n]
            expected = best(line, k)
            self.assertEqual(row["indices"], expected)
            got = [float(v) for v in row["values"]]
            self.assertEqual([repr(v) for v in got], [repr(abs(v) if math.isnan(v) else v) for v in (line[i] for i in expected)])

    def values(self, count, special=True, seed=1):
        generator = random.Random(seed)
        values = [generator.randrange(-64, 64) / 8 for _ in range(count)]
        if special:
            for value in (math.nan, -math.nan, math.inf, -math.inf, 0.0, -0.0):
                values[generator.randrange(count)] = value
        return values

    def test_float32_float16_and_bfloat16(self):
        values = self.values(3 * 1001)
        for descr, data, args in (
            ("<f4", floats(values), ()),
            ("<f2", struct.pack("<%de" % len(values), *values), ()),
            ("<f2", struct.pack("<%de" % len(values), *values), ("--dtype", "f16")),
            ("<u2", bf16_words(values), ("--dtype", "bf16")),
            ("|V2", bf16_words(values), ("--dtype", "bfloat16")),
        ):
            with self.subTest(descr=descr, args=args):
                result = self.topk(self.file(header(descr, (3, 1001)) + data), 40, *args)
                self.check(values, 3, 40, result)
                self.assertEqual(result["shape"], [3, 1001])

    def test_header_versions_and_spellings(self):
        values = self.values(12)
        for text in (
            header("<f4", (12,)),
            header("<f4", (12,), version=(2, 0)),
            header("<f4", (12,), version=(3, 0)),
            header("<f4", (12,), fortran=True),  # one axis has only one order
            raw_header("{'shape':(12L,),'fortran_order':False,'descr':'<f4'}"),
            raw_header('{ "descr" : "<f4" , "fortran_order" : False , "shape" : ( 12 , ) }'),
            b"\x93NUMPY\x01\x00" + struct.pack("<H", 58) + b"{'descr':'<f4','fortran_order':False,'shape':(12,)}".ljust(58),
        ):
            with self.subTest(header=text):
                self.check(values, 1, 5, self.topk(self.file(text + floats(values)), 5))

    def test_more_axes_are_rows_of_the_last(self):
        values = self.values(2 * 3 * 5)
        result = self.topk(self.file(header("<f4", (2, 3, 5)) + floats(values)), 2)
        self.check(values, 6, 2, result)

    def test_options_do_not_change_the_answer(self):
        values = self.values(4 * 3000, seed=5)
        path = self.file(header("<f4", (4, 3000)) + floats(values))
        for args in (
            ("--algorithm", "bucket_maxima"),
            ("--algorithm", "lane_sort"),
            ("--algorithm", "lane_sort", "--lanes", 16, "--depth-schedule", "1,2,30"),
            ("--threads", 1),
            ("--threads", 3),
            ("--sorted",),
        ):
            with self.subTest(args=args):
                self.check(values, 4, 64, self.topk(path, 64, *args))
        for target in json.loads(self.output("info", "--json"))["targets"]:
            with self.subTest(target=target):
                self.check(values, 4, 64, self.topk(path, 64, env={"RIFFLE_TARGET": target}))

    def test_unsorted_is_the_same_set(self):
        values = self.values(2000, special=False, seed=2)
        row = self.topk(self.file(header("<f4", (2000,)) + floats(values)), 100, "--unsorted")["rows"][0]
        self.assertEqual(sorted(row["indices"]), sorted(best(values, 100)))
        self.assertEqual(row["values"], [values[i] for i in row["indices"]])

    def test_check(self):
        values = self.values(3 * 700, seed=9)
        path = self.file(header("<f2", (3, 700)) + struct.pack("<%de" % len(values), *values))
        for k in (1, 33, 700):
            self.assertTrue(self.topk(path, k, "--check")["checked"])
        self.assertIn("all 3 rows agree", self.output("topk", path, "-k", 33, "--check", "--show-rows", 0))
        self.refused("topk", path, "-k", 3, "--check", "--unsorted", says=["--check"])

    def test_stats(self):
        values = [1.0, 3.0, 2.0, 2.0, 2.0, 0.5]
        path = self.file(header("<f4", (6,)) + floats(values))
        stats = self.topk(path, 3, "--stats")["rows"][0]["stats"]
        self.assertEqual((stats["kth_value"], stats["ties_at_kth"]), (2.0, 3))
        self.assertIn("certificate: place 3 has 2, which 3 of the row equal", self.output("topk", path, "-k", 3, "--stats"))

    def test_text(self):
        path = self.file(header("<f4", (2, 3)) + floats([1, -math.inf, 2.5, math.nan, -0.0, 7]))
        self.assertEqual(
            self.output("topk", path, "-k", 2),
            "row 0\n  rank       index  value\n     1           2  2.5\n     2           0  1\n\n"
            "row 1\n  rank       index  value\n     1           0  nan\n     2           2  7\n\n",
        )
        shown = self.output("topk", path, "-k", 2, "--show-rows", 1, "--show", 1)
        self.assertIn("... and 1 more\n", shown)
        self.assertIn("... and 1 more rows\n", shown)
        self.assertNotIn("row 1", shown)

    def test_no_rows(self):
        path = self.file(header("<f4", (0, 7)))
        self.assertEqual(self.topk(path, 3)["rows"], [])
        self.assertEqual(self.output("topk", path, "-k", 3), "")

    def test_time_is_beside_reading(self):
        path = self.file(header("<f4", (4, 5000)) + floats(self.values(20000)))
        time = self.topk(path, 8, "--time", "--min-time", 0.001)["time"]
        self.assertEqual(time["bytes"], 80000)
        self.assertGreater(time["topk_seconds_min"], 0)
        self.assertGreaterEqual(time["topk_seconds_median"], time["topk_seconds_min"])
        self.assertAlmostEqual(
            time["read_bandwidth_share"], time["read_seconds_median"] / time["topk_seconds_median"], places=6
        )
        self.assertIn("% of the read bandwidth", self.output("topk", path, "-k", 8, "--time", "--min-time", 0.001))

    def test_results_in_files(self):
        values = self.values(2 * 3 * 50, special=False)
        path = self.file(header("<u2", (2, 3, 50)) + bf16_words(values))
        out_values, out_indices = os.path.join(self.folder, "v.npy"), os.path.join(self.folder, "i.npy")
        self.output("topk", path, "-k", 4, "--dtype", "bf16", "--show-rows", 0, "--out-values", out_values, "--out-indices", out_indices)
        expected = [i for r in range(6) for i in best(values[r * 50 : r * 50 + 50], 4)]
        with open(out_indices, "rb") as f:
            content = f.read()
        head = header("<i4", (2, 3, 4))
        self.assertEqual(content[: len(head)], head)
        self.assertEqual(list(struct.unpack("<24i", content[len(head) :])), expected)
        # What was written is read again, rows x last axis: the values are their own best.
        again = self.topk(out_values, 4, "--dtype", "bf16")
        self.assertEqual([row["indices"] for row in again["rows"]], [[0, 1, 2, 3]] * 6)
        flat = [values[i // 4 * 50 + column] for i, column in enumerate(expected)]
        self.assertEqual([v for row in again["rows"] for v in row["values"]], flat)

    def test_results_that_cannot_be_written(self):
        path = self.file(header("<f4", (4,)) + floats([1, 2, 3, 4]))
        self.refused("topk", path, "-k", 1, "--out-values", path, says=[path, "overwrite the input"])
        self.refused("topk", path, "-k", 1, "--out-values", "o.npy", "--out-indices", "o.npy", says=["o.npy"])
        missing = os.path.join(self.folder, "missing", "v.npy")
        self.refused("topk", path, "-k", 1, "--out-values", missing, says=[missing, "No such file"], code=1)
        if os.path.exists("/dev/full"):
            self.refused("topk", path, "-k", 1, "--out-values", "/dev/full", says=["/dev/full", "No space"], code=1)
            with open("/dev/full", "w") as full:
                done = subprocess.run([RIFFLE, "topk", path, "-k", "1"], stdout=full, stderr=subprocess.PIPE, text=True)
            self.assertEqual(done.returncode, 1)
            self.assertTrue(done.stderr.startswith("riffle: error: "), done.stderr)
        with open(path, "rb") as f:
            self.assertEqual(f.read()[-16:], floats([1, 2, 3, 4]))


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
        ):
            with self.subTest(descr=descr, args=args):
                path = self.file(header(descr, (1,)) + bytes(8))
                self.refused("topk", path, "-k", 1, *args, says=[path, *says])
        fields = raw_header("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}")
        self.refused("topk", self.file(fields + bytes(4)), "-k", 1, says=["several fields"])

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


class Usage(Cli):
    def test_help_and_version(self):
        for args in (["--help"], ["topk", "--help"], ["plan", "--help"], ["info", "--help"], ["make-logits", "--help"], ["bench", "topk", "--help"]):
            with self.subTest(args=args):
                self.assertIn("--help", self.output(*args))
        self.assertIn("Examples:", self.output("topk", "--help"))
        version = json.loads(self.output("info", "--json"))["version"]
        self.assertEqual(self.output("--version").strip(), "riffle " + version)

    def test_bad_usage(self):
        path = self.file(header("<f4", (1, 4)) + floats([1, 2, 3, 4]))
        for args, says in (
            ((), ["subcommand", "riffle --help"]),
            (("bench", "everything"), ["everything", "riffle bench --help"]),
            (("frobnicate",), ["frobnicate"]),
            (("topk",), ["riffle topk --help"]),
            (("topk", path), ["-k"]),
            (("topk", path, "-k", "many"), ["many"]),
            (("topk", path, "-k", "0"), ["-k 0", "1..4"]),
            (("topk", path, "-k", "-1"), ["-k"]),
            (("topk", path, "-k", "5"), ["-k 5", "1..4"]),
            (("topk", path, "-k", "9223372036854775807"), ["1..4"]),
            (("topk", path, "-k", "9223372036854775808"), ["-k"]),
            (("topk", path, "-k", "1", "--wrong"), ["--wrong"]),
            (("topk", path, "-k", "1", "--time", "--min-time", "-1"), ["--min-time"]),
            (("topk", path, "-k", "1", "--dtype", "f64"), ["f64", "bf16"]),
            (("topk", path, "-k", "1", "--algorithm", "magic"), ["magic", "lane_sort"]),
            (("topk", path, "-k", "1", "--threads", "-1"), ["threads"]),
            (("topk", path, "-k", "1", "--threads", "100000"), ["100000", "1024"]),
            (("topk", path, "-k", "1", "--algorithm", "lane_sort", "--lanes", "3"), ["lanes"]),
            (("topk", path, "-k", "1", "--algorithm", "lane_sort", "--depth-schedule", "3,2"), ["depth_schedule"]),
            (("plan", "--n", "10"), ["--k"]),
            (("plan", "--n", "10", "--k", "11"), ["11"]),
            (("plan", "--n", "10", "--k", "1", "--lanes", "0"), ["lanes"]),
            (("bench", "topk", "--only", "nothing-is-called-so"), ["nothing-is-called-so", "rows32-bf16"]),
            (("bench", "topk", "--quick", "--only", "per-row-1", "--target", "ABACUS"), ["ABACUS"]),
            (("make-logits", "x.npy", "--vocab", "0"), ["--vocab 0"]),
            (("make-logits", "x.npy", "--rows", "4611686018427387904"), ["--rows"]),
        ):
            with self.subTest(args=args):
                self.refused(*args, says=says)

    def test_environment(self):
        path = self.file(header("<f4", (1, 4)) + floats([1, 2, 3, 4]))
        self.refused("topk", path, "-k", 1, env={"RIFFLE_TARGET": "ABACUS"}, says=["ABACUS"])
        self.refused("topk", path, "-k", 1, env={"RIFFLE_NUM_THREADS": "many"}, says=["RIFFLE_NUM_THREADS", "many"])
        info = json.loads(self.output("info", "--json", env={"RIFFLE_NUM_THREADS": "3"}))
        self.assertEqual((info["threads"], info["environment"]["RIFFLE_NUM_THREADS"]), (3, "3"))
        for target in info["targets"]:
            chosen = json.loads(self.output("info", "--json", env={"RIFFLE_TARGET": target}))
            self.assertEqual((chosen["target"], chosen["targets"]), (target, info["targets"]))
            self.assertIn("target    " + target, self.output("info", env={"RIFFLE_TARGET": target}))


class OtherCommands(Cli):
    def test_plan(self):
        plan = json.loads(self.output("plan", "--n", 201088, "--k", 64, "--lanes", 128, "--rows", 32, "--json"))
        probability = {line["depth"]: line["probability"] for line in plan["depths"]}
        self.assertAlmostEqual(probability[2], 0.13437, places=5)
        self.assertAlmostEqual(probability[3], 0.67366, places=5)
        self.assertAlmostEqual(probability[4], 0.17274, places=5)
        self.assertAlmostEqual(sum(probability.values()), 1, places=9)
        done = [line["batch_done"] for line in plan["depths"]]
        self.assertAlmostEqual(plan["depths"][3]["row_done"] ** 32, done[3], places=9)
        expected = sum((d + 1) * (p - q) for d, (p, q) in enumerate(zip(done, [0, *done])))
        self.assertAlmostEqual(plan["expected_batch_depth"], expected, places=6)
        text = self.output("plan", "--n", 201088, "--k", 64, "--rows", 32)
        self.assertIn("0.673656", text)
        self.assertIn("expected depth", text)

    def test_make_logits_is_the_same_everywhere(self):
        path = os.path.join(self.folder, "l.npy")
        self.output("make-logits", path, "--rows", 2, "--vocab", 5000)
        with open(path, "rb") as f:
            content = f.read()
        head = header("<u2", (2, 5000))
        self.assertEqual(content[: len(head)], head)
        # SHA-256 of what every machine must make.
        import hashlib

        self.assertEqual(hashlib.sha256(content).hexdigest(), LOGITS_SHA256)
        self.output("make-logits", path, "--rows", 2, "--vocab", 5000, "--seed", 2)
        with open(path, "rb") as f:
            self.assertNotEqual(f.read(), content)

    def test_bench(self):
        result = json.loads(self.output("bench", "topk", "--quick", "--only", "per-row-1", "--min-time", "0.001", "--json"))
        (line,) = result["lines"]
        self.assertEqual((line["rows"], line["n"], line["k"], line["bytes"]), (1, 129280, 1024, 129280 * 4))
        self.assertAlmostEqual(line["read_bandwidth_share"], line["read_seconds_median"] / line["seconds_median"], places=6)


LOGITS_SHA256 = "0a6ae01bb9e6bc3976b8253a1fd0e5c044ae27a367e466a1325a189279cbd3c0"

if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    RIFFLE = os.path.abspath(sys.argv.pop(1))
    unittest.main()
