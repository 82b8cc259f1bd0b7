#!/usr/bin/env python3
"""Tests the rules of scripts/check_includes.py on small trees. scripts/lint.sh runs it."""

import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
import check_includes


class Rules(unittest.TestCase):
    def found_in(self, files, known=()):
        """Messages for a tree: path -> the names that it includes, or the text of a CMakeLists.txt."""
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            for name, content in files.items():
                path = root / name
                path.parent.mkdir(parents=True, exist_ok=True)
                if not isinstance(content, str):
                    lines = [f"#include <{i}>" if i.startswith("torch/") else f'#include "{i}"' for i in content]
                    content = "\n".join(["#pragma once", *lines]) + "\n"
                path.write_text(content)
            check_includes.ROOT, check_includes.KNOWN_CIRCLES = root, list(known)
            return [message for _, _, message in check_includes.findings()]

    def test_the_order_of_folders(self):
        upward = {"lib/report/a.h": ["plan/a.h"], "lib/plan/a.h": [], "lib/options/a.h": ["io/a.h"], "lib/io/a.h": []}
        self.assertEqual(
            self.found_in(upward),
            ['"io/a.h": options may not include io', '"plan/a.h": report may not include plan'],
        )
        self.assertEqual(self.found_in({"lib/plan/a.h": ["report/a.h"], "lib/report/a.h": ["io/a.h"], "lib/io/a.h": []}), [])

    def test_headers_that_reach_themselves(self):
        circle = {"lib/io/a.h": ["io/b.h"], "lib/io/b.h": ["io/c.h"], "lib/io/c.h": ["io/a.h"]}
        self.assertEqual(
            self.found_in(circle), ["headers include each other: lib/io/a.h > lib/io/b.h > lib/io/c.h > lib/io/a.h"]
        )
        self.assertEqual(self.found_in({"lib/io/a.h": ["io/a.h"]}), ["headers include each other: lib/io/a.h > lib/io/a.h"])

    def test_units_that_reach_each_other(self):
        circle = {"lib/io/a.h": [], "lib/io/a.cpp": ["io/a.h", "io/b.h"], "lib/io/b.h": [], "lib/io/b.cpp": ["io/a.h"]}
        self.assertEqual(self.found_in(circle), ["units include each other: io/a > io/b > io/a"])
        self.assertEqual(self.found_in(circle, [{"io/a", "io/b", "io/c"}]), [])
        one_way = {**circle, "lib/io/b.cpp": ["io/b.h"]}
        self.assertEqual(self.found_in(one_way), [])

    def test_a_known_circle_that_is_gone(self):
        (message,) = self.found_in({"lib/io/a.h": []}, [{"io/a", "io/b"}])
        self.assertIn("no circle among io/a io/b any more", message)

    def test_a_private_header_makes_no_circle(self):
        self.assertEqual(
            self.found_in({"lib/io/a.h": [], "lib/io/a_state.h": ["io/a.h"], "lib/io/a.cpp": ["io/a.h", "io/a_state.h"]}), []
        )

    def test_torch_is_found_behind_other_headers(self):
        tensor = {"lib/nn/tensor.h": ["torch/types.h"], "lib/nn/decoder.h": ["nn/tensor.h"]}
        way = "nn/decoder.h > nn/tensor.h > torch/types.h"
        for user, reason in [
            ("lib/plan/a.cpp", "plan"),
            ("lib/profile/options.h", "every options.h"),
            ("cli/main.cpp", "cli but for cli/torch"),
        ]:
            found = self.found_in({**tensor, user: ["nn/decoder.h"]})
            self.assertIn(f"{way}: {reason} is free of LibTorch", found)
        plain = self.found_in(tensor)
        for user in ("lib/profile/a.cpp", "cli/torch/a.cpp"):
            self.assertEqual(self.found_in({**tensor, user: ["nn/decoder.h"]}), plain)

    def test_torch_is_not_linked_either(self):
        link = {"lib/plan/a.h": [], "lib/plan/CMakeLists.txt": "elastify_library(plan DEPENDS elastify_model elastify_nn)"}
        self.assertEqual(self.found_in(link), ["plan is free of LibTorch and may not link nn"])


if __name__ == "__main__":
    unittest.main()
