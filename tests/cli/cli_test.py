"""The `riffle` command from outside: what it prints, what it saves, how it exits.

    python3 tests/cli/cli_test.py build/release/riffle [unittest arguments]

Needs nothing but Python.
"""

import hashlib
import json
import math
import os
import random
import struct
import subprocess

import cli_case
from cli_case import Cli, best, bf16_words, floats, header, raw_header


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
        # The written values are read again, as rows x last axis: the best of them are all of them, in order.
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
                done = subprocess.run([cli_case.RIFFLE, "topk", path, "-k", "1"], stdout=full, stderr=subprocess.PIPE, text=True)
            self.assertEqual(done.returncode, 1)
            self.assertTrue(done.stderr.startswith("riffle: error: "), done.stderr)
        with open(path, "rb") as f:
            self.assertEqual(f.read()[-16:], floats([1, 2, 3, 4]))


class Usage(Cli):
    def test_help_and_version(self):
        for args in (["--help"], ["topk", "--help"], ["plan", "--help"], ["info", "--help"], ["make-logits", "--help"], ["bench", "topk", "--help"], ["bench", "linear", "--help"], ["bench", "attention", "--help"], ["bench", "sample", "--help"], ["bench", "write", "--help"], ["bench", "sparse", "--help"]):
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
            (("bench", "linear", "--only", "nothing-is-called-so"), ["nothing-is-called-so", "bf16-rows1"]),
            (("bench", "attention", "--only", "nothing-is-called-so"), ["nothing-is-called-so", "D1-page128"]),
            (("bench", "attention", "--only", "D3", "--target", "ABACUS"), ["ABACUS"]),
            (("bench", "sample", "--only", "nothing-is-called-so"), ["nothing-is-called-so", "top-p-wide"]),
            (("bench", "write", "--only", "nothing-is-called-so"), ["nothing-is-called-so", "bf16-2048"]),
            (("bench", "sparse", "--only", "nothing-is-called-so"), ["nothing-is-called-so", "v32-bf16-32"]),
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
        # The SHA-256 of the file that every machine must write.
        self.assertEqual(hashlib.sha256(content).hexdigest(), LOGITS_SHA256)
        self.output("make-logits", path, "--rows", 2, "--vocab", 5000, "--seed", 2)
        with open(path, "rb") as f:
            self.assertNotEqual(f.read(), content)

    def test_bench_attention(self):
        result = json.loads(self.output("bench", "attention", "--quick", "--only", "D3", "--min-time", "0.001", "--json"))
        (line,) = result["lines"]
        self.assertEqual((line["name"], line["decode"], line["group"], line["head_dim"]), ("D3", True, 8, 256))
        self.assertEqual(line["bytes"], 2 * 8 * 2048 * 256 * 2)
        self.assertEqual(line["operations"], 4 * 8 * 2048 * 8 * 256)
        self.assertGreater(line["seconds_min"], 0)
        self.assertGreater(line["read_share"], 0)

    def test_bench_sample(self):
        result = json.loads(self.output("bench", "sample", "--only", "and-logprobs", "--min-time", "0.001", "--json"))
        (line,) = result["lines"]
        self.assertEqual((line["name"], line["top_k"], line["logprobs"]), ("and-logprobs", 64, True))
        self.assertEqual(line["bytes"], 32 * 262144 * 4)
        self.assertGreater(line["read_share"], 0)
        self.assertNotIn("peak_share", line)

    def test_bench_sparse(self):
        result = json.loads(self.output("bench", "sparse", "--quick", "--only", "-4k", "--min-time", "0.001", "--json"))
        dense, step = result["lines"]
        self.assertEqual((dense["name"], dense["context"], dense["operations"]), ("dense-4k", 4096, 2 * 128 * (576 + 512) * 4096))
        self.assertEqual((step["name"], step["k"], step["bytes"]), ("step-4k", 2048, 4096 * 132 + 2048 * 1152))
        self.assertGreater(dense["peak_share"], 0)
        result = json.loads(self.output("bench", "sparse", "--quick", "--only", "fp8-1", "--min-time", "0.001", "--json"))
        self.assertEqual([line["name"] for line in result["lines"]], ["v32-fp8-1", "v4-fp8-1"])

    def test_bench_write(self):
        result = json.loads(self.output("bench", "write", "--only", "-1", "--min-time", "0.001", "--json"))
        self.assertEqual([line["name"] for line in result["lines"]], ["bf16-1", "e4m3-1"])
        for line in result["lines"]:
            self.assertEqual((line["tokens"], line["kv_heads"], line["bytes"]), (1, 8, 2 * 8 * 128 * 2))
            self.assertGreater(line["read_share"], 0)

    def test_bench(self):
        result = json.loads(self.output("bench", "topk", "--quick", "--only", "per-row-1", "--min-time", "0.001", "--json"))
        (line,) = result["lines"]
        self.assertEqual((line["rows"], line["n"], line["k"], line["bytes"]), (1, 129280, 1024, 129280 * 4))
        self.assertAlmostEqual(line["read_bandwidth_share"], line["read_seconds_median"] / line["seconds_median"], places=6)


LOGITS_SHA256 = "0a6ae01bb9e6bc3976b8253a1fd0e5c044ae27a367e466a1325a189279cbd3c0"

if __name__ == "__main__":
    cli_case.main(__doc__)
