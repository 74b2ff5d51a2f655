"""riffle llama: installing into folders that look like llama.cpp's.

    python3 tests/cli/cli_llama_test.py build/release/riffle [unittest arguments]
"""

import os
import subprocess

import cli_case
from cli_case import Cli

BACKEND = "libggml-cpu-riffle.so"


class Llama(Cli):
    def setUp(self):
        super().setUp()
        self.backends = os.path.join(self.folder, "ggml", "backends0")
        os.makedirs(self.backends)
        for name in ("libggml-cpu-x64.so", "libggml-cpu-zen4.so", "libggml-vulkan.so"):
            self.file(b"", os.path.join(self.backends, name))
        self.file(b"", "libggml-base.so.0")
        self.file(b"", "libggml-base.so.0.27.0")
        self.source = self.file(b"the file", "built.so")
        self.installed = os.path.join(self.backends, BACKEND)

    def test_status(self):
        said = self.output("llama", "status", self.backends)
        self.assertIn("2 variants of the CPU backend, ggml 0.27.0; without Riffle", said)

    def test_install_and_uninstall(self):
        said = self.output("llama", "install", self.backends, "--file", self.source, "--yes")
        self.assertIn(self.installed, said)
        with open(self.installed, "rb") as f:
            self.assertEqual(f.read(), b"the file")
        self.assertIn("with Riffle", self.output("llama", "status", self.backends))
        self.assertIn("2 variants", self.output("llama", "status", self.backends))
        self.output("llama", "install", self.backends, "--file", self.source, "--yes")  # again
        self.output("llama", "uninstall", self.backends, "--yes")
        self.assertFalse(os.path.exists(self.installed))
        self.assertIn("without Riffle", self.output("llama", "uninstall", self.backends, "--yes"))
        self.assertEqual(
            sorted(os.listdir(self.backends)), ["libggml-cpu-x64.so", "libggml-cpu-zen4.so", "libggml-vulkan.so"]
        )

    def test_nothing_is_written_without_an_answer(self):
        done = subprocess.run(
            [cli_case.RIFFLE, "llama", "install", self.backends, "--file", self.source],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        self.assertEqual(done.returncode, 2)
        self.assertIn("--yes", done.stderr)
        self.assertFalse(os.path.exists(self.installed))

    def test_found_beside_a_program_of_path(self):
        program = self.file(b"#!/bin/sh\n", os.path.join(self.backends, "llama-server"))
        os.chmod(program, 0o755)
        said = self.output("llama", "status", env={"PATH": self.backends})
        self.assertIn(os.path.realpath(self.backends), said)

    def test_folders_and_files_that_are_not_there(self):
        self.refused("llama", "status", self.folder, says=(self.folder, "libggml-cpu-*.so"))
        self.refused("llama", "install", os.path.join(self.folder, "none"), "--file", self.source, "--yes", says=("none",))
        self.refused("llama", "install", self.backends, "--file", "nowhere.so", "--yes", says=("nowhere.so", "make llama"))


if __name__ == "__main__":
    cli_case.main(__doc__)
