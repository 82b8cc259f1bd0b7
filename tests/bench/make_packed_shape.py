#!/usr/bin/env python3
"""Writes a packed file of Llama-2-7B's shape (32 layers, 4096 x 11008, q4_0) with nine levels and no weights. The data
is a hole, so the file takes only a few hundred kB of disk. For build/switch_levels, which switches without reading
weights.

    tests/bench/make_packed_shape.py FILE.gguf
"""

import os
import struct
import sys

LAYERS, WIDTH, HEAD, HEADS, NEURONS, VOCAB = 32, 4096, 128, 32, 11008, 32000
Q4_0, F32 = 2, 0
U32, I32, FLT, STR, ARR, U64, I64, F64 = 4, 5, 6, 8, 9, 10, 11, 12
CODES = {U32: "<I", I32: "<i", FLT: "<f", U64: "<Q", I64: "<q", F64: "<d"}


def text(value):
    return struct.pack("<Q", len(value)) + value.encode()


def one(kind, value):
    return text(value) if kind == STR else struct.pack(CODES[kind], value)


def key(name, kind, value):
    if isinstance(value, list):
        return text(name) + struct.pack("<IIQ", ARR, kind, len(value)) + b"".join(one(kind, v) for v in value)
    return text(name) + struct.pack("<I", kind) + one(kind, value)


def padded(size):
    return (size + 31) // 32 * 32


def tensors(heads, neurons):
    """Returns (name, ne, type) of every tensor, in file order."""
    rows = heads * HEAD
    table = [("token_embd.weight", (WIDTH, VOCAB), Q4_0)]
    for layer in range(LAYERS):
        table += [(f"blk.{layer}.{name}", ne, F32 if len(ne) == 1 else Q4_0) for name, ne in (
            ("attn_norm.weight", (WIDTH,)), ("attn_q.weight", (WIDTH, rows)), ("attn_k.weight", (WIDTH, rows)),
            ("attn_v.weight", (WIDTH, rows)), ("attn_output.weight", (rows, WIDTH)), ("ffn_norm.weight", (WIDTH,)),
            ("ffn_gate.weight", (WIDTH, neurons)), ("ffn_up.weight", (WIDTH, neurons)),
            ("ffn_down.weight", (neurons, WIDTH)))]
    return table + [("output_norm.weight", (WIDTH,), F32), ("output.weight", (WIDTH, VOCAB), Q4_0)]


def size(ne, kind):
    row = ne[0] * 4 if kind == F32 else ne[0] // 32 * 18
    return row * (ne[1] if len(ne) > 1 else 1)


def header(keys, records):
    out, offset = b"GGUF" + struct.pack("<IQQ", 3, len(records), len(keys)) + b"".join(keys), 0
    for name, ne, kind in records:
        out += text(name) + struct.pack("<I", len(ne)) + b"".join(struct.pack("<Q", n) for n in ne)
        out += struct.pack("<IQ", kind, offset)
        offset += padded(size(ne, kind))
    return out.ljust(padded(len(out)), b"\0"), offset


def part(heads, neurons):
    kept = tensors(heads, neurons)
    shapes = [n for _, ne, _ in kept for n in (ne[0], ne[1] if len(ne) > 1 else 0)]
    return header([key("elastify.part.tensors", STR, [name for name, _, _ in kept]),
                   key("elastify.part.shapes", I64, shapes), key("elastify.part.rope", STR, "interleaved")], [])[0]


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    levels = [n / 10 for n in range(2, 11)]
    widths = [(max(1, round(HEADS * level)), round(NEURONS * level / 32) * 32) for level in levels]
    parts = [part(heads, neurons) for heads, neurons in widths[:-1]]
    weights = [heads * HEAD * 4 * WIDTH + 3 * neurons * WIDTH for heads, neurons in widths]

    def packed(first):
        offsets = [first]
        for each in parts[:-1]:
            offsets.append(padded(offsets[-1] + len(each)))
        n = len(levels)
        return [key("general.architecture", STR, "llama"), key("llama.block_count", U32, LAYERS),
                key("llama.attention.key_length", U32, HEAD), key("elastify.packed.version", U32, 1),
                key("elastify.packed.rope", STR, "interleaved"), key("elastify.packed.levels", F64, levels),
                key("elastify.packed.names", STR, [f"level-{int(level * 100):03}.gguf" for level in levels]),
                key("elastify.packed.architectures", STR, ["llama"] * n),
                key("elastify.packed.decoder_ratios", F64, [w / weights[-1] for w in weights]),
                key("elastify.packed.total_ratios", F64, [w / weights[-1] for w in weights]),
                key("elastify.packed.kv_groups", I32, [heads for heads, _ in widths for _ in range(LAYERS)]),
                key("elastify.packed.d_ff", I32, [neurons for _, neurons in widths for _ in range(LAYERS)]),
                key("elastify.packed.parts", I32, [*range(n - 1), -1]),
                key("elastify.packed.adapters", I32, [-1] * n),
                key("elastify.packed.file_offsets", U64, offsets),
                key("elastify.packed.file_bytes", U64, [len(each) for each in parts])], offsets

    full = tensors(HEADS, NEURONS)
    start, data = header(packed(0)[0], full)
    keys, offsets = packed(len(start) + data)
    with open(sys.argv[1], "wb") as file:
        file.write(header(keys, full)[0])
        for offset, each in zip(offsets, parts):
            file.seek(offset)
            file.write(each)
    print(f"{sys.argv[1]}: {os.path.getsize(sys.argv[1]) / 1e9:.2f} GB, "
          f"{os.stat(sys.argv[1]).st_blocks * 512 / 1e6:.1f} MB of disk")


if __name__ == "__main__":
    main()
