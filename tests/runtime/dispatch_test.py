"""What older and other x86 processors run: programs under qemu-user's models of them.

    python3 tests/runtime/dispatch_test.py QEMU RUNTIME_PROBE [PROGRAM...]

An instruction that a model lacks ends a program by SIGILL, so each PROGRAM (a test of every target that the machine has) passes
only if no kernel goes beyond its target. qemu-user has no AVX-512: models that have it run AVX2 here. Models that the installed
qemu does not know are left out.
"""

import re
import subprocess
import sys
import unittest

QEMU, PROBE, *PROGRAMS = sys.argv[1:]
# Highway's SSE4 includes AES and CLMUL, which came with Westmere.
EXPECTED = {
    "core2duo": "SSE2",
    "Nehalem": "SSE2",
    "Westmere": "SSE4",
    "SandyBridge": "SSE4",
    "Haswell": "AVX2",
    "EPYC": "AVX2",
    "Skylake-Server": "AVX2",
    "Icelake-Server": "AVX2",
    "SapphireRapids": "AVX2",
}


def run(model: str, program: str) -> subprocess.CompletedProcess:
    # The warnings are about features that a model has and qemu lacks.
    return subprocess.run([QEMU, "-cpu", model, program], capture_output=True, text=True, timeout=800)


class Dispatch(unittest.TestCase):
    def models(self) -> dict[str, str]:
        text = subprocess.run([QEMU, "-cpu", "help"], capture_output=True, text=True).stdout
        known = set(re.findall(r"^(?:x86)?\s+(\S+)", text, re.MULTILINE))  # "x86 Nehalem", since qemu 10 "  Nehalem"
        return {model: target for model, target in EXPECTED.items() if model in known}

    def test_the_best_target_of_each_model_is_chosen(self) -> None:
        self.assertIn("Nehalem", self.models())
        self.assertIn("Haswell", self.models())
        for model, target in self.models().items():
            with self.subTest(model=model):
                done = run(model, PROBE)
                self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
                self.assertRegex(done.stdout, f"right=1 target={target} kernel={target} ")

    def test_answers_are_right(self) -> None:
        for model in ("Nehalem", "Westmere", "Haswell", "Icelake-Server"):  # one of each target and one that could do more
            for program in PROGRAMS:
                with self.subTest(model=model, program=program):
                    done = run(model, program)
                    self.assertEqual(done.returncode, 0, (done.stdout + done.stderr)[-2000:])


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
