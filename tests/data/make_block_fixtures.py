"""Makes block_fixtures.bin: values and their encodings according to gguf-py, an implementation in numpy.

    pip install gguf==0.19.0 && python3 make_block_fixtures.py

Records, one after the other: 16 bytes of text ("decode q4_0"), u32 n_bytes, u32 n_values, the encoded bytes,
n_values float32. "decode" gives the bytes and expects the floats; "encode" gives the floats and expects the bytes.
"""

import struct
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize

# Offsets of the f16 scales in a block.
SCALES = {
    Type.Q4_0: [0], Type.Q4_1: [0, 2], Type.Q5_0: [0], Type.Q5_1: [0, 2], Type.Q8_0: [0],
    Type.Q4_K: [0, 2], Type.Q5_K: [0, 2], Type.Q6_K: [208],
}


def random_blocks(rng, type_):
    size, n_bytes = GGML_QUANT_SIZES[type_]
    scales = np.array([0.0123, -0.5, 6e-8, 3.0, 0.0, 1e-5], dtype=np.float16)  # two of them subnormal
    blocks = rng.integers(0, 256, size=(len(scales) if size == 32 else 3, n_bytes), dtype=np.uint8)
    for place, offset in enumerate(SCALES[type_]):
        values = np.roll(scales, place)[: len(blocks)]
        blocks[:, offset : offset + 2] = values.view(np.uint8).reshape(-1, 2)
    return blocks


def hard_values(rng):
    """Ties, small numbers, zeros, the edge of f16, and values whose quotient in q8_0 is close to a half."""
    ties = np.arange(32, dtype=np.float32) - 15.5
    ties[0] = 127
    ties16 = (np.arange(32, dtype=np.float32) * 2 + 1) * np.float32(2.0**-12) + 1
    small = np.ldexp(rng.standard_normal(32), -20).astype(np.float32)
    tiny = np.ldexp(rng.standard_normal(32), -100).astype(np.float32)
    edge = np.linspace(60000, 65519, 32).astype(np.float32)
    return np.concatenate([np.zeros(32, np.float32), ties, -ties, ties16, small, tiny, edge,
                           rng.standard_normal(288).astype(np.float32)])


def main():
    rng = np.random.default_rng(1)
    records = []
    for type_ in SCALES:
        blocks = random_blocks(rng, type_)
        records.append(("decode", type_, blocks.tobytes(), dequantize(blocks, type_).reshape(-1)))
    values = hard_values(rng)
    for type_ in (Type.F16, Type.BF16, Type.Q8_0):
        records.append(("encode", type_, quantize(values.reshape(1, -1), type_).tobytes(), values))
    out = b""
    for action, type_, encoded, floats in records:
        floats = floats.astype("<f4")
        label = f"{action} {type_.name.lower()}".encode()
        out += struct.pack("<16sII", label, len(encoded), len(floats)) + encoded + floats.tobytes()
    (Path(__file__).parent / "block_fixtures.bin").write_bytes(out)


main()
