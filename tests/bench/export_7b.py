#!/usr/bin/env python3
"""Times `elastify reorder` and `export` of a 7B-shaped model against copying it, and measures their memory.

    tests/bench/export_7b.py FOLDER        with 45 GB free

Makes a random checkpoint of 13.5 GB (make_llama_shaped.py) in FOLDER/7b-shaped, and removes all of it at the end.
What is written is flushed to the disk before the clock stops, on both sides.
"""
import os
import pathlib
import shutil
import subprocess
import sys
import time

root = pathlib.Path(__file__).resolve().parents[2]
folder = pathlib.Path(sys.argv[1]) / "7b-shaped"
elastify = root / "build/elastify"


def timed(name, *command):
    """Seconds, and the peak memory in MiB."""
    start = time.monotonic()
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    subprocess.run(["sync", "-f", str(folder)], check=True)
    seconds = time.monotonic() - start
    if status != 0:
        sys.exit(f"{name}: failed")
    print(f"{name}: {seconds:.0f} s, peak {used.ru_maxrss / 1024:.0f} MiB", flush=True)
    return seconds


def size_of(directory):
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())


folder.mkdir(parents=True)
try:
    timed("model", sys.executable, root / "tests/bench/make_llama_shaped.py", folder / "model")
    copied = timed("cp", "cp", "-r", folder / "model", folder / "copy")
    shutil.rmtree(folder / "copy")
    reordered = timed("reorder", elastify, "reorder", folder / "model", "--metric", "random", "--grid", 256,
                      "--levels", "0.2:1.0:0.1", "-o", folder / "reordered")
    print(f"reorder: {copied / reordered:.2f} of cp's throughput", flush=True)
    shutil.rmtree(folder / "model")
    exported = timed("export --type q8_0, full and 0.5", elastify, "export", folder / "reordered", "--type", "q8_0",
                     "--levels", "0.5,1.0", "-o", folder / "artifact")
    read, written = size_of(folder / "reordered"), size_of(folder / "artifact")
    print(f"export: {read / 1e9:.1f} GB read, {written / 1e9:.1f} GB written, {read / 1e6 / exported:.0f} MB/s read", flush=True)
finally:
    shutil.rmtree(folder, ignore_errors=True)
