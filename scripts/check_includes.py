#!/usr/bin/env python3
"""Checks which folder includes which, where LibTorch may appear, and that every header has `#pragma once`.

    scripts/check_includes.py            prints what is wrong; exit code 1 if anything is
    scripts/check_includes.py --light    instead lists the files that LibTorch is nowhere included from

Includes go rightwards only, and the folders within one pair of braces do not know each other:

    cli > pipeline > {profile reorder plan recover tlm export eval} > {train solve} > {nn data} > model > io > base
"""

import re
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LAYERS = [
    {"base"},
    {"io"},
    {"model"},
    {"nn", "data"},
    {"train", "solve"},
    {"profile", "reorder", "plan", "recover", "tlm", "export", "eval"},
    {"pipeline"},
    {"cli"},
]
RANK = {folder: rank for rank, layer in enumerate(LAYERS) for folder in layer}
TORCH_FREE = {"base", "io", "model", "data"}
TORCH_H = {"nn", "solve", "train", "profile", "recover", "tlm", "eval"}  # where a .cpp may include <torch/torch.h>
TORCH = re.compile(r"(torch|ATen|c10|caffe2)/")
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*([<"])([^">]+)[">]', re.M)
DEPENDS = re.compile(r"\belastify_([a-z]+)\b")


def sources():
    for top in ("lib", "cli", "tests"):
        for path in sorted((ROOT / top).rglob("*")):
            if path.suffix in (".h", ".cpp") and "node_modules" not in path.parts:
                yield path


def folder_of(path):
    """The folder of lib/ that a file belongs to, or "cli" or "tests"."""
    parts = path.relative_to(ROOT).parts
    return parts[1] if parts[0] == "lib" else parts[0]


@cache
def includes(path):
    """(line, quoted?, name, file of this project or None) of every include."""
    text = path.read_text(encoding="utf-8")
    found = []
    for match in INCLUDE.finditer(text):
        name, quoted = match[2], match[1] == '"'
        places = [ROOT / "lib" / name, ROOT / name, ROOT / "lib" / f"{name}.in"]  # .in: made by CMake
        if quoted and folder_of(path) == "tests":
            places += [ROOT / "tests" / name, path.parent / name]
        ours = next((place for place in places if place.is_file()), None)
        found.append((text.count("\n", 0, match.start()) + 1, quoted, name, ours))
    return found


@cache
def reaches_torch(path):
    return any(TORCH.match(name) or (ours and reaches_torch(ours)) for _, _, name, ours in includes(path))


def allowed(folder, other):
    return folder == other or RANK[other] < RANK[folder]


def check(path):
    folder = folder_of(path)
    header = path.suffix == ".h"
    if folder != "tests" and folder not in RANK:
        yield 1, f"lib/{folder} has no place in the order of folders: see LAYERS in scripts/check_includes.py"
        return
    if header and not re.search(r"^#pragma once$", path.read_text(encoding="utf-8"), re.M):
        yield 1, "no `#pragma once`"
    for line, quoted, name, ours in includes(path):
        if ".." in Path(name).parts:
            yield line, f'"{name}": includes are relative to lib/'
        elif quoted and ours is None and folder != "tests":
            yield line, f'"{name}" is not a file of this project: write <{name}>'
        elif not quoted and ours is not None:
            yield line, f'<{name}> is a file of this project: write "{name}"'
        if header and folder != "tests" and (name.startswith("torch/") or name == "ATen/ATen.h"):
            yield line, f"<{name}> in a header: take <ATen/core/Tensor.h> or a forward declaration"
        if folder == "tests":
            continue
        if TORCH.match(name) and folder in TORCH_FREE:
            yield line, f"<{name}>: {folder} is free of LibTorch"
        elif name == "torch/torch.h" and folder not in TORCH_H:
            yield line, f"<{name}>: only in .cpp files of {' '.join(sorted(TORCH_H))}"
        if ours is not None:
            other = folder_of(ours)
            if other == "tests" or other not in RANK or not allowed(folder, other):
                yield line, f'"{name}": {folder} may not include {other}'


def check_cmake(path):
    folder = path.parent.name
    text = re.sub(r"#.*", "", path.read_text(encoding="utf-8"))
    for match in DEPENDS.finditer(text):
        other = match[1]
        if folder in RANK and other in RANK and not allowed(folder, other):
            yield text.count("\n", 0, match.start()) + 1, f"{folder} may not link {other}"


def main():
    if sys.argv[1:] == ["--light"]:
        for path in sources():
            if not reaches_torch(path):
                print(path.relative_to(ROOT))
        return 0
    if sys.argv[1:]:
        sys.exit(__doc__)
    n_files = n_wrong = 0
    files = [(path, check) for path in sources()]
    files += [(path, check_cmake) for path in sorted((ROOT / "lib").glob("*/CMakeLists.txt"))]
    for path, rule in files:
        n_files += 1
        for line, message in rule(path):
            n_wrong += 1
            print(f"{path.relative_to(ROOT)}:{line}: {message}")
    if n_files == 0:
        print("no source files found")
        return 1
    return 1 if n_wrong else 0


if __name__ == "__main__":
    sys.exit(main())
