#!/usr/bin/env python3
"""The calls of front_ends.py by two builds of the package: what the wheels' compiler costs or gains.

    scripts/wheels.sh x86_64 && scripts/python_package.sh
    .venv/bin/python bench/wheel_compilers.py dist/wheels/riffle_llm-*-cp311-*_x86_64.whl

The wheel is unpacked into a folder of its own and compared with the installed package, which g++ compiled. Each build runs in a
process of its own; they take turns, round by round, and the least of the rounds' medians counts. Results must have the same bits.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import zipfile

import front_ends
import numpy as np

front_ends.CASES.update({
    "top_k, 32 x 201088, k 64, float32": ("top_k", "float32", (32, 201088, 64)),
    "linear_top_k, 32 x 640 on 65536, k 64": ("linear_top_k", "bfloat16", (32, 640, 65536, 64)),
    "linear_top_k, 4 x 640 on 65536, k 64, float32": ("linear_top_k", "float32", (4, 640, 65536, 64)),
    "paged_attention, 4 x 1 query, 1024 keys, float32": ("paged_attention", "float32", (4, 32, 128, 256, 8, 16)),
})  # fmt: skip


def work(folder, directory, seconds):
    """As a worker of front_ends.py; which build is imported, PYTHONPATH says."""
    import riffle

    assert not folder or riffle.__file__.startswith(folder), riffle.__file__
    front_ends.work("numpy", directory, seconds)


class Build:
    """A process that imports the package from a folder, or the installed one."""

    def __init__(self, folder, directory, seconds):
        command = [sys.executable, "-W", "ignore", __file__, "--worker", folder, "--directory", directory, "--seconds", str(seconds)]
        environment = os.environ | {"RIFFLE_NUM_THREADS": str(front_ends.THREADS), "PYTHONPATH": folder}
        self.process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.directory = directory

    def ask(self, name):
        import json

        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(name) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(f"the process of {self.directory} ended")
        return json.loads(answer)


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("wheel", nargs="?")
    parser.add_argument("--installed", default="", help="a folder to import the other build from, instead of the environment")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.3)
    parser.add_argument("--worker")
    parser.add_argument("--directory")
    args = parser.parse_args()
    if args.worker is not None:
        return work(args.worker, args.directory, args.seconds)
    with tempfile.TemporaryDirectory() as scratch:
        folders = {"g++": args.installed, "wheel": os.path.join(scratch, "wheel")}
        with zipfile.ZipFile(args.wheel) as wheel:
            wheel.extractall(folders["wheel"])
        builds = {}
        for name, folder in folders.items():
            os.mkdir(os.path.join(scratch, f"answers of {name}"))
            builds[name] = Build(folder, os.path.join(scratch, f"answers of {name}"), args.seconds)
        best = {}
        cases = [case for case in front_ends.CASES if args.only in case]
        for _ in range(args.rounds):
            for case in cases:
                for name, build in builds.items():
                    best[case, name] = min(build.ask(case), best.get((case, name), float("inf")))
        print("| call | g++, us | wheel, us | wheel / g++ |\n|---|---|---|---|")
        for case in cases:
            answers = {name: front_ends.file_of(build.directory, case) for name, build in builds.items()}
            check_same(answers["g++"], answers["wheel"], case)
            gxx, wheel = best[case, "g++"], best[case, "wheel"]
            print(f"| {case.strip()} | {gxx:.0f} | {wheel:.0f} | {wheel / gxx:.2f} |")


def check_same(one, other, case):
    with np.load(one) as a, np.load(other) as b:
        if any(not np.array_equal(a[name], b[name]) for name in a):
            sys.exit(f"{case}: the builds differ")


if __name__ == "__main__":
    main()
