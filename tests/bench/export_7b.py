#!/usr/bin/env python3
"""Times `elastify reorder` and `export` of a 7B-shaped model against copying it, and measures their memory.

    tests/bench/export_7b.py FOLDER        with 35 GB free

Makes a random checkpoint of 13.5 GB (make_llama_shaped.py) in FOLDER/7b-shaped, and removes all of it at the end.
On both sides the output is flushed to the disk before the clock stops. The adapters are random, of rank 32, for all
eight levels.
"""
import json
import os
import pathlib
import random
import shutil
import struct
import subprocess
import sys
import time

root = pathlib.Path(__file__).resolve().parents[2]
folder = pathlib.Path(sys.argv[1]) / "7b-shaped"
elastify = root / "build/elastify"


def timed(name, *command):
    """Runs a command and prints its seconds and peak memory in MiB. Returns the seconds."""
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


def write_adapters(reordered, rank):
    """Writes adapters in the files that `reorder --compensate adapter` writes."""
    plan = json.loads((reordered / "plan.json").read_text())
    config = json.loads((reordered / "config.json").read_text())
    d, head_dim = config["hidden_size"], config["hidden_size"] // config["num_attention_heads"]
    noise = struct.pack("<1000f", *(random.gauss(0, 0.01) for _ in range(1000))) * 2000
    for level in plan["levels"][:-1]:
        shapes = {}
        for layer, (groups, d_ff) in enumerate(zip(level["kv_groups"], level["d_ff"])):
            for name, width in (("self_attn.o_proj", groups * head_dim), ("mlp.down_proj", d_ff)):
                stem = f"base_model.model.model.layers.{layer}.{name}."
                shapes |= {stem + "lora_A.weight": [rank, width], stem + "lora_B.weight": [d, rank]}
        header, offset = {}, 0
        for name, shape in shapes.items():
            header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + 4 * shape[0] * shape[1]]}
            offset = header[name]["data_offsets"][1]
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 64)
        repairs = reordered / "repairs" / f"level-{round(100 * level['nominal']):03d}"
        repairs.mkdir(parents=True)
        with open(repairs / "adapter_model.safetensors", "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for shape in shapes.values():
                file.write(noise[:4 * shape[0] * shape[1]])
        (repairs / "adapter_config.json").write_text(json.dumps(
            {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank, "bias": "none",
             "target_modules": ["o_proj", "down_proj"]}))
        (repairs / "repair.json").write_text(json.dumps(
            {"format": "elastify.repair", "version": 1, "spec_hash": plan["spec_hash"], "level": level["nominal"],
             "compensation": "adapter", "adapters": True, "weights": False}))


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
    full = (folder / "artifact/full.gguf").stat().st_size
    shutil.rmtree(folder / "artifact")
    write_adapters(folder / "reordered", 32)
    timed("export --type q8_0 --packed, nine levels with adapters", elastify, "export", folder / "reordered", "--type", "q8_0",
          "--packed", "-o", folder / "artifact")
    packed = (folder / "artifact/model.gguf").stat().st_size
    print(f"packed: {packed / 1e9:.2f} GB, {packed / full:.3f} of full.gguf", flush=True)
    timed("slice --level 0.5", elastify, "slice", folder / "artifact/model.gguf", "--level", "0.5", "-o", folder / "level.gguf")
finally:
    shutil.rmtree(folder, ignore_errors=True)
