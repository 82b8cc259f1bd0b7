#!/usr/bin/env python3
"""Checks which folder includes which, that no files include each other in a circle, where LibTorch may appear, and that
every header has `#pragma once`.

    scripts/check_includes.py            prints what is wrong; exit code 1 if anything is
    scripts/check_includes.py --light    instead lists the files that LibTorch is nowhere included from

Includes go rightwards only, and the folders within one pair of braces do not know each other:

    cli > pipeline > orchestrate > {profile reorder plan recover tlm export eval} > {train solve slo report}
        > {nn data} > model > {io options} > base

A header and the .cpp file of the same name are a unit. Units may not include each other in a circle either: a.cpp may not
include b.h where b.cpp includes a.h. A circle with one .cpp file in it is allowed: that unit has private headers.

Some files are free of LibTorch, which means that no chain of includes leads from them to its headers: the folders in
TORCH_FREE, every options.h, and cli but for cli/torch.
"""

import re
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LAYERS = [
    {"base"},
    {"io", "options"},
    {"model"},
    {"nn", "data"},
    {"train", "solve", "slo", "report"},
    {"profile", "reorder", "plan", "recover", "tlm", "export", "eval"},
    {"orchestrate"},
    {"pipeline"},
    {"cli"},
]
RANK = {folder: rank for rank, layer in enumerate(LAYERS) for folder in layer}
TORCH_FREE = {"base", "io", "options", "model", "data", "slo", "report", "plan", "reorder", "export"}
# Where a .cpp may include <torch/torch.h>.
TORCH_H = {"nn", "solve", "train", "profile", "recover", "tlm", "eval", "orchestrate"}
# Circles of units that are still there. A circle that lies within one of these sets passes; a set without one is an error,
# so that the list only gets shorter.
KNOWN_CIRCLES = [
    # A vocabulary makes the tokenizers that read it.
    {"data/byte_level_bpe", "data/sentencepiece_model", "data/sentencepiece_tokenizer", "data/tokenizer",
     "data/vocabulary", "data/vocabulary_checks"},
    # A spec is made out of its family's table.
    {"model/families/families", "model/spec"},
    # The decoder's private state: a struct within its class, in a header of its own.
    {"nn/decoder", "nn/decoder_state"},
]
TARGETS = {"exporter": "export", "artifact": "pipeline"}  # CMake targets that are not named after their folder
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
def way_to_torch(path):
    """The names that lead from a file to a header of LibTorch, one including the next; None if there is no way."""
    ways = [((), path)]
    seen = {path}
    for way, file in ways:  # grows
        for _, _, name, ours in includes(file):
            if TORCH.match(name):
                return (*way, name)
            if ours and ours not in seen:
                seen.add(ours)
                ways.append(((*way, name), ours))
    return None


def is_torch_free(path):
    folder = folder_of(path)
    if folder == "cli":
        return path.relative_to(ROOT).parts[1] != "torch"
    return folder in TORCH_FREE or (folder in RANK and path.name == "options.h")


def allowed(folder, other):
    return folder == other or RANK[other] < RANK[folder]


def unit_of(path):
    """What a header and its .cpp file have in common: "model/plan", "cli/main"."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return "/".join(parts[1:] if parts[0] == "lib" else parts)


def groups_in_circles(edges):
    """Sets of nodes that reach each other, and nodes that reach themselves. edges: node -> {node: anything}"""

    def reached_from(node):
        reached, left = set(), [node]
        while left:
            for other in edges.get(left.pop(), ()):
                if other not in reached:
                    reached.add(other)
                    left.append(other)
        return reached

    reached = {node: reached_from(node) for node in edges}
    groups = {frozenset(o for o in reached[n] if n in reached.get(o, ())) for n in edges if n in reached[n]}
    return sorted(groups, key=sorted)


def shortest_circle(edges, group):
    """The nodes of a shortest way within a group from its first node back to itself."""
    first = min(group)
    ways = [(first,)]
    seen = set()
    for way in ways:  # grows
        for other in edges[way[-1]]:
            if other == first:
                return (*way, first)
            if other in group and other not in seen:
                seen.add(other)
                ways.append((*way, other))
    raise AssertionError(f"{sorted(group)} are in no circle")


def check_circles():
    """(path, line, message) of every circle."""
    headers, units, has_cpp = {}, {}, set()  # edges: from -> to -> (path, line) of an include
    for path in sources():
        unit = unit_of(path)
        units.setdefault(unit, {})
        if path.suffix == ".cpp":
            has_cpp.add(unit)
        for line, _, _, ours in includes(path):
            if ours is None:
                continue
            if path.suffix == ".h":
                headers.setdefault(path, {}).setdefault(ours, (path, line))
            if unit_of(ours) != unit:
                units[unit].setdefault(unit_of(ours), (path, line))
    for group in groups_in_circles(headers):
        circle = shortest_circle(headers, group)
        names = " > ".join(str(path.relative_to(ROOT)) for path in circle)
        yield *headers[circle[0]][circle[1]], f"headers include each other: {names}"
    found = [group for group in groups_in_circles(units) if len(group & has_cpp) > 1]
    for group in found:
        if any(group <= known for known in KNOWN_CIRCLES):
            continue
        circle = shortest_circle(units, group)
        yield *units[circle[0]][circle[1]], f"units include each other: {' > '.join(circle)}"
    for known in KNOWN_CIRCLES:
        if not any(group <= known for group in found):
            names = " ".join(sorted(known))
            yield Path(__file__).resolve(), 1, f"KNOWN_CIRCLES: there is no circle among {names} any more: take it out"


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
        way = (name,) if TORCH.match(name) else (name, *(way_to_torch(ours) or ())) if ours else ()
        if is_torch_free(path) and way and TORCH.match(way[-1]):
            reason = "every options.h" if path.name == "options.h" else "cli but for cli/torch" if folder == "cli" else folder
            yield line, f"{' > '.join(way)}: {reason} is free of LibTorch"
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
        other = TARGETS.get(match[1], match[1])
        if folder in TORCH_FREE and (other == "torch" or (other in RANK and other not in TORCH_FREE)):
            yield text.count("\n", 0, match.start()) + 1, f"{folder} is free of LibTorch and may not link {other}"
        elif folder in RANK and other in RANK and not allowed(folder, other):
            yield text.count("\n", 0, match.start()) + 1, f"{folder} may not link {other}"


def findings():
    """(path, line, message) of everything that is wrong."""
    for path in sources():
        for line, message in check(path):
            yield path, line, message
    for path in sorted((ROOT / "lib").glob("*/CMakeLists.txt")):
        for line, message in check_cmake(path):
            yield path, line, message
    yield from check_circles()


def main():
    if sys.argv[1:] == ["--light"]:
        for path in sources():
            if way_to_torch(path) is None:
                print(path.relative_to(ROOT))
        return 0
    if sys.argv[1:]:
        sys.exit(__doc__)
    if not any(sources()):
        print("no source files found")
        return 1
    found = list(findings())
    for path, line, message in found:
        print(f"{path.relative_to(ROOT)}:{line}: {message}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
