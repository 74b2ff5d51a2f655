"""The `riffle` command when something around it is broken: streams, files that change, options without meaning.

    python3 tests/cli/cli_faults_test.py build/release/riffle [unittest arguments]

Needs nothing but Python. RIFFLE_SLOW set: the command is built with sanitizers.
"""

import os
import subprocess
import time

import cli_case
from cli_case import Cli, floats, header


def wait_until(condition, process, seconds=60):
    """Waits for condition() while the process runs."""
    end = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None or time.monotonic() > end:
            raise AssertionError("ended or took too long: %s" % (process.stderr and process.stderr.read()))
        time.sleep(0.01)


def maps(process, path):
    with open("/proc/%d/maps" % process.pid, encoding="utf8", errors="replace") as f:
        return path in f.read()


class Streams(Cli):
    def setUp(self):
        super().setUp()
        self.good = self.file(header("<f4", (2, 4)) + floats([1, 2, 3, 4, 8, 7, 6, 5]), "good.npy")
        self.absent = os.path.join(self.folder, "absent.npy")

    def shell(self, redirection, *args):
        """The exit code and standard output of the command under a shell's redirections."""
        done = subprocess.run(
            ["sh", "-c", 'exec "$0" "$@" ' + redirection, cli_case.RIFFLE, *map(str, args)],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=120,
        )  # fmt: skip
        return done.returncode, done.stdout

    def test_a_broken_stderr_changes_no_exit_code(self):
        for args in (
            ("topk", self.absent, "-k", 1),
            ("topk", self.good, "-k", 1),
            ("topk", self.good, "-k", 9),
            ("topk", self.good, "-k", 1, "--out-values", os.path.join(self.absent, "v.npy")),
            ("frobnicate",),
            ("--version",),
            ("generate", "--prompt", "a", "--model", self.absent),
            ("bench", "topk", "--only", "nothing-is-called-so"),
        ):
            right = self.run_riffle(*args)
            self.assertEqual(right.stderr != "", right.returncode != 0, args)
            for redirection in ("2>&-", "2>/dev/full", "2>&- <&-"):
                with self.subTest(args=args, redirection=redirection):
                    self.assertEqual(self.shell(redirection, *args), (right.returncode, right.stdout.encode()))

    def test_a_broken_stdout_is_a_failed_run(self):
        for redirection in (">&-", ">/dev/full", ">&- 2>&-", ">&- 2>&- <&-"):
            with self.subTest(redirection=redirection):
                self.assertEqual(self.shell(redirection, "topk", self.good, "-k", 1)[0], 1)
                self.assertEqual(self.shell(redirection, "--version")[0], 1)
                self.assertEqual(self.shell(redirection, "topk", self.absent, "-k", 1)[0], 2)

    def test_files_do_not_take_the_numbers_of_closed_streams(self):
        out = os.path.join(self.folder, "v.npy")
        args = ("topk", self.good, "-k", 1, "--show-rows", 0, "--out-values", out)
        self.assertEqual(self.shell(">&- 2>&- <&-", *args), (0, b""))
        with open(out, "rb") as f:
            self.assertEqual(f.read(), header("<f4", (2, 1)) + floats([4, 8]))
        # The table cannot be printed, and must not go into the file.
        self.assertEqual(self.shell(">&- 2>&- <&-", *args[:4], "--out-values", out), (1, b""))
        with open(out, "rb") as f:
            self.assertEqual(f.read(), header("<f4", (2, 1)) + floats([4, 8]))


class Options(Cli):
    def setUp(self):
        super().setUp()
        self.path = self.file(header("<f4", (1, 4)) + floats([1, 2, 3, 4]))

    def test_seconds(self):
        for seconds in ("0", "-0", "nan", "-nan", "inf", "-1", "1e300", "", "long", "1s"):
            for args in (("topk", self.path, "-k", 2, "--time"), ("bench", "topk", "--quick"), ("bench", "sample")):
                with self.subTest(args=args, seconds=seconds):
                    error = self.refused(*args, "--min-time", seconds, says=["--min-time", seconds + " is not", "86400"])
                    self.assertLess(len(error), 200)

    def test_counts(self):
        for option in ("--show-rows", "--show"):
            for count in ("-1", "1.5", "1e3", "99999999999999999999", "few", ""):
                with self.subTest(option=option, count=count):
                    error = self.refused("topk", self.path, "-k", 2, option, count, says=[option, "is not an integer of 0 or more"])
                    self.assertLess(len(error), 200)
        for seed in ("-1", "18446744073709551616", "x"):
            self.refused("make-logits", "x.npy", "--seed", seed, says=["--seed", seed])

    def test_empty_texts(self):
        for args in (
            ("topk", self.path, "-k", 1, "--out-values", ""),
            ("topk", self.path, "-k", 1, "--out-indices", ""),
            ("bench", "topk", "--target", ""),
            ("generate", "--prompt", "a", "--model", ""),
            ("generate", "--prompts", ""),
        ):
            with self.subTest(args=args):
                self.refused(*args, says=[args[-2], "is empty"])

    def test_more_than_there_is_memory_for(self):
        if os.environ.get("RIFFLE_SLOW"):  # the sanitizers themselves need more memory than the limit
            self.skipTest("under sanitizers")
        done = subprocess.run(
            ["sh", "-c", 'ulimit -v 4000000 && exec "$0" make-logits x.npy --rows 300000 --vocab 2000000', cli_case.RIFFLE],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertEqual(done.stderr, "riffle: error: no memory for the logits, 1200 GB; give fewer --rows\n")

    def test_outputs_that_are_one_file(self):
        os.chdir(self.folder)
        self.addCleanup(os.chdir, "/")
        os.mkdir("folder")
        os.symlink("v", "link")  # v does not exist
        os.symlink("folder", "other")
        self.file(b"old", "old")
        os.link("old", "hard")
        os.symlink("old", "soft")
        for a, b in (
            ("v", "v"), ("v", "./v"), ("v", os.path.join(self.folder, "v")), ("v", "folder/../v"), ("v", "link"), ("link", "./link"),
            ("folder/v", "other/v"), ("old", "hard"), ("hard", "soft"), ("old", "./soft"),
        ):  # fmt: skip
            with self.subTest(a=a, b=b):
                self.refused("topk", self.path, "-k", 1, "--out-values", a, "--out-indices", b, says=[a, b, "the same file"])
        self.assertEqual(sorted(os.listdir(".")), ["folder", "hard", "link", "old", "other", "soft", "x.npy"])
        with open("old", "rb") as f:
            self.assertEqual(f.read(), b"old")
        for name in ("./x.npy", "input"):
            if name == "input":
                os.link("x.npy", name)
            self.refused("topk", "x.npy", "-k", 1, "--out-indices", name, says=[name, "overwrite the input"])
        self.output("topk", "x.npy", "-k", 1, "--show-rows", 0, "--out-values", "/dev/null", "--out-indices", "/dev/null")
        self.output("topk", "x.npy", "-k", 1, "--show-rows", 0, "--out-values", "link", "--out-indices", "folder/v")
        self.assertEqual(os.path.getsize("v"), os.path.getsize("folder/v"))


class ShrinkingFiles(Cli):
    def test_an_array(self):
        path = self.file(header("<f4", (64, 1 << 16)) + bytes(64 * (1 << 18)), "shrinking.npy")
        with subprocess.Popen(
            [cli_case.RIFFLE, "topk", path, "-k", "1", "--show-rows", "0", "--time", "--min-time", "50"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            wait_until(lambda: maps(process, path), process)
            os.truncate(path, 4096)
            out, error = process.communicate(timeout=60)
        self.assertEqual((process.returncode, out), (1, ""))
        self.assertEqual(error, "riffle: error: %s: became shorter while it was read\n" % path)


if __name__ == "__main__":
    cli_case.main(__doc__)
