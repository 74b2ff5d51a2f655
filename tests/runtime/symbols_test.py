"""What a shared libriffle exports: every function that a public header marks with RIFFLE_API, and nothing else.

    python3 tests/runtime/symbols_test.py build/release/tests/libriffle_shared.so include/riffle
"""

import pathlib
import re
import subprocess
import sys
import unittest

LIBRARY, HEADERS = sys.argv[1], pathlib.Path(sys.argv[2])


def exported() -> list[str]:
    """The dynamic symbols that the library defines, demangled."""
    text = subprocess.run(["nm", "-D", "--defined-only", "-C", LIBRARY], stdout=subprocess.PIPE, text=True, check=True).stdout
    return [line.split(" ", 2)[2] for line in text.splitlines()]


def declared(folder: str = ".") -> set[str]:
    """The names of functions and classes behind RIFFLE_API in one folder of the headers."""
    text = "\n".join(path.read_text() for path in (HEADERS / folder).glob("*.h") if path.name != "export.h")
    classes = set(re.findall(r"^class RIFFLE_API (\w+)", text, re.MULTILINE))
    return classes | set(re.findall(r"^RIFFLE_API [\w:<>,&* \n]*?(\w+)\(", text, re.MULTILINE))


class Symbols(unittest.TestCase):
    def test_every_public_function_is_exported(self) -> None:
        names = {match.group(1) for symbol in exported() if (match := re.match(r"riffle::(\w+)", symbol))}
        self.assertGreater(len(declared()), 20)
        # Error is defined in its header, so its type is exported, but none of its functions.
        self.assertEqual(declared() - names, {"Error"})

    def test_every_function_of_the_c_api_is_exported(self) -> None:
        names = {symbol for symbol in exported() if symbol.startswith("riffle_")}
        self.assertGreater(len(names), 40)
        self.assertEqual(names, declared("c"))

    def test_nothing_else_is_exported(self) -> None:
        allowed = declared()
        for symbol in exported():
            if symbol.startswith("riffle_"):
                continue  # the C API's, above
            name = re.match(r"(?:(?:typeinfo|typeinfo name|vtable) for )?riffle::(\w+)", symbol)
            public = name and name.group(1) in allowed and "::Impl::" not in symbol
            self.assertTrue(public, f"{symbol} is exported and not public")

    def test_nothing_of_highway_is_exported(self) -> None:
        self.assertEqual([symbol for symbol in exported() if "hwy" in symbol.split("(")[0]], [])


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
