#!/usr/bin/env python3
"""Writes a Llama-shaped Hugging Face directory of random bf16 weights, for timing and memory, not for text.

    make_llama_shaped.py OUT [--d 4096 --ff 11008 --layers 32 --heads 32 --kv-heads 32 --vocab 32000]

The default is Llama-2-7B's shape: 13.5 GB. The tokenizer is the tests' small byte-level BPE.
"""
import argparse
import array
import json
import pathlib
import random
import shutil
import struct

parser = argparse.ArgumentParser()
parser.add_argument("out", type=pathlib.Path)
for name, default in dict(d=4096, ff=11008, layers=32, heads=32, kv_heads=32, vocab=32000).items():
    parser.add_argument("--" + name.replace("_", "-"), type=int, default=default)
a = parser.parse_args()

head_dim = a.d // a.heads
shapes = {"model.embed_tokens.weight": [a.vocab, a.d], "lm_head.weight": [a.vocab, a.d], "model.norm.weight": [a.d]}
for layer in range(a.layers):
    p = f"model.layers.{layer}."
    shapes |= {
        p + "input_layernorm.weight": [a.d],
        p + "post_attention_layernorm.weight": [a.d],
        p + "self_attn.q_proj.weight": [a.d, a.d],
        p + "self_attn.k_proj.weight": [a.kv_heads * head_dim, a.d],
        p + "self_attn.v_proj.weight": [a.kv_heads * head_dim, a.d],
        p + "self_attn.o_proj.weight": [a.d, a.d],
        p + "mlp.gate_proj.weight": [a.ff, a.d],
        p + "mlp.up_proj.weight": [a.ff, a.d],
        p + "mlp.down_proj.weight": [a.d, a.ff],
    }

# Numbers of about 1/sqrt(d): a random sign and mantissa, and one exponent near that size.
random.seed(0)
exponent = 127 - max(1, (a.d.bit_length() - 1) // 2 + 1)
block = array.array("H", (random.getrandbits(1) << 15 | exponent << 7 | random.getrandbits(7) for _ in range(1 << 20)))
noise = block.tobytes() * 2
one = struct.pack("<H", 0x3F80)

a.out.mkdir(parents=True)
header, offset = {}, 0
for name, shape in shapes.items():
    size = 2
    for n in shape:
        size *= n
    header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
    offset += size
text = json.dumps(header).encode()
text += b" " * (-len(text) % 64)
with open(a.out / "model.safetensors", "wb") as file:
    file.write(struct.pack("<Q", len(text)) + text)
    for name, shape in shapes.items():
        first, last = header[name]["data_offsets"]
        left = last - first
        if len(shape) == 1:
            file.write(one * (left // 2))
            continue
        while left > 0:
            start = random.randrange(1 << 20) * 2
            part = noise[start : start + min(left, 1 << 21)]
            file.write(part)
            left -= len(part)
(a.out / "config.json").write_text(json.dumps({
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": a.d, "intermediate_size": a.ff,
    "num_hidden_layers": a.layers, "num_attention_heads": a.heads, "num_key_value_heads": a.kv_heads,
    "vocab_size": a.vocab, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "hidden_act": "silu", "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False,
    "torch_dtype": "bfloat16"}, indent=1))
fixture = pathlib.Path(__file__).resolve().parents[1] / "data/tokenizers/gpt-2"
for name in ("tokenizer.json", "tokenizer_config.json"):
    shutil.copy(fixture / name, a.out)
