#!/usr/bin/env python3
"""Times `elastify export` of one file against stock llama.cpp's quantiser, and measures its memory.

    tests/bench/export.py FOLDER        default: /dev/shm/elastify-bench; files in memory, so that no disk slows it down

Makes a random model of 1 GB (make_llama_shaped.py) in FOLDER, which it removes at the end. Both sides use two
threads and read two bytes per weight; elastify also hashes its output. Needs build/ and tests/interop/setup.sh.
"""
import os
import pathlib
import shutil
import subprocess
import sys
import time

root = pathlib.Path(__file__).resolve().parents[2]
folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "/dev/shm/elastify-bench")
elastify, stock = root / "build/elastify", root / "build/interop/llama_quantize"


def run(*command):
    start = time.monotonic()
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.monotonic() - start


def export(name, *flags):
    shutil.rmtree(folder / name, ignore_errors=True)
    return run(elastify, "export", folder / "reordered", "-o", folder / name, "--threads", 2, *flags)


folder.mkdir(parents=True)
try:
    run(sys.executable, root / "tests/bench/make_llama_shaped.py", folder / "model", "--d", 2048, "--ff", 5632,
        "--layers", 10, "--heads", 32, "--kv-heads", 8)
    run(elastify, "reorder", folder / "model", "--metric", "random", "--grid", 256, "--levels", "0.25,0.5,0.75",
        "-o", folder / "reordered")
    shutil.rmtree(folder / "model")
    export("f16", "--type", "f16", "--levels", "1.0")
    for name, number in [("q8_0", 7), ("q4_0", 2), ("q6_k", 18), ("q4_k", 14)]:
        ours = min(export(name, "--type", name, "--levels", "1.0") for _ in range(2))
        theirs = min(run(stock, "none", folder / "f16/full.gguf", folder / "stock.gguf", number) for _ in range(2))
        print(f"{name}: elastify {ours:.1f} s, stock {theirs:.1f} s, {theirs / ours:.1f} times as fast")
        shutil.rmtree(folder / name)
    shutil.rmtree(folder / "f16")
    command = [str(elastify), "export", str(folder / "reordered"), "-o", str(folder / "all"), "--type", "q8_0",
               "--threads", "2", "-q"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    print(f"q8_0, full and 3 levels: peak {used.ru_maxrss / 1024:.0f} MiB, status {status}")
finally:
    shutil.rmtree(folder, ignore_errors=True)
