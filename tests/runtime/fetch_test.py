"""Without Highway in .deps or installed, CMake fetches it: here from a repository on this machine that stands in for upstream's.

    python3 tests/runtime/fetch_test.py CHECKOUT HIGHWAY_SOURCE
"""

import os
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT, HIGHWAY = sys.argv[1], sys.argv[2]


class Fetch(unittest.TestCase):
    def test_highway(self):
        with tempfile.TemporaryDirectory() as folder:
            upstream = os.path.join(folder, "upstream")
            shutil.copytree(os.path.join(HIGHWAY, "hwy"), os.path.join(upstream, "hwy"))
            shutil.copy(os.path.join(HIGHWAY, "CMakeLists.txt"), upstream)
            git = ["git", "-C", upstream, "-c", "user.name=test", "-c", "user.email=test@localhost"]
            subprocess.run([*git, "init", "-q"], check=True)
            subprocess.run([*git, "add", "."], check=True)
            subprocess.run([*git, "commit", "-q", "-m", "1.2.0"], check=True)
            subprocess.run([*git, "tag", "1.2.0"], check=True)
            checkout = os.path.join(folder, "checkout")
            os.mkdir(checkout)
            for name in ("CMakeLists.txt", "cmake", "include", "src"):
                os.symlink(os.path.join(ROOT, name), os.path.join(checkout, name))
            env = {
                **os.environ,
                "GIT_CONFIG_COUNT": "1",
                "GIT_CONFIG_KEY_0": f"url.file://{upstream}.insteadOf",
                "GIT_CONFIG_VALUE_0": "https://github.com/google/highway.git",
            }
            options = ["-DRIFFLE_BUILD_CLI=OFF", "-DCMAKE_DISABLE_FIND_PACKAGE_hwy=ON"]
            build = os.path.join(folder, "build")
            done = subprocess.run(["cmake", "-S", checkout, "-B", build, *options], env=env, capture_output=True, text=True, timeout=300)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            self.assertIn("riffle: fetching Highway", done.stdout)
            self.assertNotIn("Warning", done.stderr)
            fetched = os.path.join(build, "_deps", "riffle_highway-src", "hwy", "highway.h")
            self.assertTrue(os.path.isfile(fetched), fetched)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
