"""The scripts in unusual checkouts and shells: odd paths, CDPATH, no HOME, two builds at once.

    python3 tests/runtime/scripts_test.py [unittest arguments]

cmake is replaced by a program that writes down how it was called, so nothing is built.
"""

import os
import pwd
import shutil
import stat
import subprocess
import tempfile
import unittest

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
CMAKE = """#!/bin/sh
# Two at once in one checkout collide here.
mkdir "$PWD/busy" || { echo "collided" >>"$PWD/calls"; exit 1; }
printf '%s|%s|%s|%s\\n' "$PWD" "$*" "${CCACHE_BASEDIR-unset}" "${CDPATH-unset}" >>"$PWD/calls"
sleep "${SLOW:-0}"
rmdir "$PWD/busy"
"""
TAIL = "models/gemma-3-270m-q4_k_m.gguf\n"


class Scripts(unittest.TestCase):
    def checkout(self, name):
        """A checkout that has only the scripts, and an environment in which `cmake` is the program above."""
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        path = os.path.join(folder.name, name)
        shutil.copytree(os.path.join(ROOT, "scripts"), os.path.join(path, "scripts"))
        os.makedirs(os.path.join(path, ".deps", "highway"))
        for file in ("CMakePresets.json", ".deps/highway/CMakeLists.txt"):
            open(os.path.join(path, file), "w", encoding="ascii").close()
        tools = os.path.join(folder.name, "tools")
        os.mkdir(tools)
        for tool in ("cmake", "ccache"):
            with open(os.path.join(tools, tool), "w", encoding="ascii") as f:
                f.write(CMAKE)
            os.chmod(os.path.join(tools, tool), stat.S_IRWXU)
        env = {k: v for k, v in os.environ.items() if not k.startswith(("CCACHE", "CMAKE", "RIFFLE", "XDG", "CDPATH"))}
        return path, {**env, "PATH": tools + ":" + env["PATH"]}

    def run_script(self, path, env, *args):
        done = subprocess.run(args, cwd=path, env=env, capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done

    def calls(self, path):
        with open(os.path.join(path, "calls"), encoding="utf8") as f:
            return [line.rstrip("\n").split("|") for line in f]

    def test_odd_paths(self):
        for name in ("plain", "with a space", "with $x and $HOME", "with 'quotes\"", "with * and ;"):
            with self.subTest(name=name):
                path, env = self.checkout(name)
                self.run_script("/", env, os.path.join(path, "scripts", "build.sh"), "dev", "--target", "x y")
                configure, build = self.calls(path)
                base = "unset" if "$" in name else path
                self.assertEqual(configure, [path, "--preset dev", base, "unset"])
                self.assertEqual(build[0], path)
                self.assertTrue(build[1].startswith("--build build/dev --parallel "), build)
                self.assertTrue(build[1].endswith(" --target x y"), build)
                model = self.run_script(path, {**env, "RIFFLE_CACHE": path}, "scripts/model.sh", "--path")
                self.assertEqual(model.stdout, os.path.join(path, TAIL))

    def test_cdpath(self):
        path, env = self.checkout("checkout")
        env["CDPATH"] = os.path.dirname(path) + ":" + path + ":/"
        for call in (("scripts/build.sh", "dev"), ("bash", "scripts/build.sh", "dev")):
            self.run_script(path, env, *call)
        model = self.run_script(path, {**env, "RIFFLE_CACHE": "/c"}, "scripts/model.sh", "--path")
        self.assertEqual(model.stdout, "/c/" + TAIL)
        for call in self.calls(path):
            self.assertEqual((call[0], call[3]), (path, "unset"))

    def test_without_a_home(self):
        path, env = self.checkout("checkout")
        home = pwd.getpwuid(os.getuid()).pw_dir
        for value in (None, ""):
            env.pop("HOME", None)
            if value is not None:
                env["HOME"] = value
            model = self.run_script(path, env, "scripts/model.sh", "--path")
            self.assertEqual(model.stdout, os.path.join(home, ".cache/riffle", TAIL))
            self.run_script(path, env, "scripts/build.sh", "dev")

    @unittest.skipUnless(shutil.which("flock"), "needs flock")
    def test_two_builds_at_once(self):
        path, env = self.checkout("checkout")
        env["SLOW"] = "1"
        builds = [
            subprocess.Popen(["scripts/build.sh", "dev"], cwd=path, env=env, stderr=subprocess.PIPE, text=True) for _ in range(3)
        ]
        errors = [build.communicate(timeout=60)[1] for build in builds]
        self.assertEqual([build.returncode for build in builds], [0, 0, 0], errors)
        waited = [e for e in errors if "another run is at work on build/dev in this checkout: waiting" in e]
        self.assertEqual(len(waited), 2, errors)
        self.assertEqual(len(self.calls(path)), 6)
        self.assertNotIn(["collided"], self.calls(path))


if __name__ == "__main__":
    unittest.main()
