#!/usr/bin/env python3
"""Makes the tiny random Hugging Face checkpoints beside this file, and their expected logits.

    python make_hf_fixtures.py [--smollm2 SmolLM2-135M-Instruct.Q4_1.gguf]
    python make_hf_fixtures.py --check

Every folder of CASES receives config.json, model.safetensors (or two shards and their index) and
expected.safetensors: `ids` [T] (float32, so that a reader of weights can read them) and `logits`
[T, V], computed in float32 with eager attention from the weights as stored.

--smollm2 also writes smollm2_reference.json, from that GGUF file's dequantised weights.
--check writes nothing: it recomputes every case and compares. Run it with another version of
transformers to see that the fixtures do not depend on one.
"""

import argparse
import hashlib
import json
import math
import shutil
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

HERE = Path(__file__).resolve().parent
N_TOKENS = 24
WEIGHT_STD = 0.2  # makes logits of about unit variance at a hidden size of 32
SPREAD = 0.3  # of biases around 0 and of norm gains around 1

SMALL = dict(hidden_size=32, intermediate_size=80, num_hidden_layers=2, vocab_size=128,
             max_position_embeddings=64, bos_token_id=1, eos_token_id=2)
# Wavelengths of 16 dimensions at base 10000 are 6, 20, 63, 199, ...: with these bounds (16 and 64)
# all three branches of the llama3 rule are taken.
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=64)

# config: arguments of the config class over SMALL. old: write config.json as transformers 4 did.
# drop, extra: keys then removed from or added to config.json, to look like files in the wild.
CASES = {
    # Multi-head, untied, and no more keys than the first LLaMA releases had.
    "llama_mha": dict(
        family="Llama",
        config=dict(num_attention_heads=4, num_key_value_heads=4, num_hidden_layers=3,
                    intermediate_size=64, rms_norm_eps=1e-5),
        old=True,
        drop=["num_key_value_heads", "head_dim", "attention_bias", "mlp_bias", "attention_dropout",
              "pretraining_tp"]),
    # Grouped, tied, heads wider than hidden_size / heads.
    "llama_gqa_tied": dict(
        family="Llama",
        config=dict(num_attention_heads=4, num_key_value_heads=2, head_dim=16,
                    tie_word_embeddings=True, vocab_size=144, rms_norm_eps=1e-5)),
    "llama_rope_llama3": dict(
        family="Llama",
        config=dict(num_attention_heads=4, num_key_value_heads=2, head_dim=16,
                    rope_parameters=dict(LLAMA3, rope_theta=10000.0))),
    # The same rule in the old form, stored in BF16, with another base and a group of four.
    "llama_rope_llama3_old_bf16": dict(
        family="Llama",
        config=dict(num_attention_heads=4, num_key_value_heads=1, head_dim=16,
                    rope_parameters=dict(LLAMA3, rope_theta=50000.0, factor=32.0)),
        old=True, dtype=torch.bfloat16),
    "llama_bias": dict(
        family="Llama",
        config=dict(num_attention_heads=4, num_key_value_heads=2, attention_bias=True,
                    mlp_bias=True)),
    # A window of 8 in a sequence of 24.
    "mistral_window": dict(
        family="Mistral",
        config=dict(num_attention_heads=8, num_key_value_heads=2, head_dim=8, sliding_window=8,
                    rms_norm_eps=1e-5)),
    "mistral_full_f16": dict(
        family="Mistral",
        config=dict(num_attention_heads=4, num_key_value_heads=2, head_dim=8, sliding_window=None,
                    num_hidden_layers=3, rms_norm_eps=1e-5,
                    rope_parameters=dict(rope_type="default", rope_theta=1000000.0)),
        dtype=torch.float16),
    # As Qwen2.5 ships it: a sliding_window that use_sliding_window switches off.
    "qwen2_tied": dict(
        family="Qwen2",
        config=dict(num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
                    vocab_size=160,
                    rope_parameters=dict(rope_type="default", rope_theta=1000000.0)),
        old=True, extra=dict(sliding_window=8, use_sliding_window=False, max_window_layers=2)),
    "qwen2_untied_sharded": dict(
        family="Qwen2",
        config=dict(num_attention_heads=8, num_key_value_heads=4),
        shard="80KB"),
    "qwen3_tied": dict(
        family="Qwen3",
        config=dict(num_attention_heads=4, num_key_value_heads=2, head_dim=16,
                    tie_word_embeddings=True, num_hidden_layers=3,
                    rope_parameters=dict(rope_type="default", rope_theta=1000000.0))),
}


def randomize(model, seed):
    """Random weights, with no norm gain left at 1 and no bias at 0, so that ignoring one shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(1.0 + SPREAD * noise)
            elif name.endswith(".bias"):
                parameter.copy_(SPREAD * noise)
            else:
                parameter.copy_(WEIGHT_STD * noise)


def write_old_form(path, drop, extra):
    """Rewrites a config.json of transformers 5 with the keys that transformers 4 used."""
    config = json.loads(path.read_text())
    if "rope_parameters" not in config:
        return
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    config["torch_dtype"] = config.pop("dtype")
    for key in ["layer_types", "transformers_version", *drop]:
        config.pop(key, None)
    config.update(extra)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def load(folder, **overrides):
    return AutoModelForCausalLM.from_pretrained(
        folder, torch_dtype=torch.float32, attn_implementation="eager", **overrides).eval()


def logits_of(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float()


def make(name, case, seed):
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    config_class = getattr(transformers, case["family"] + "Config")
    config = config_class(**{**SMALL, **case["config"]})
    model = getattr(transformers, case["family"] + "ForCausalLM")(config)
    randomize(model, seed)
    model.to(case.get("dtype", torch.float32))
    model.save_pretrained(folder, max_shard_size=case.get("shard", "1GB"))
    (folder / "generation_config.json").unlink(missing_ok=True)
    n_shards = len(list(folder.glob("*.safetensors")))
    assert n_shards == (2 if "shard" in case else 1), f"{name}: {n_shards} weight files"
    if case.get("old"):
        write_old_form(folder / "config.json", case.get("drop", []), case.get("extra", {}))

    generator = torch.Generator().manual_seed(1000 + seed)
    ids = torch.randint(3, config.vocab_size, (N_TOKENS,), generator=generator).tolist()
    logits = logits_of(load(folder), ids)
    save_file({"ids": torch.tensor(ids, dtype=torch.float32), "logits": logits.contiguous()},
              folder / "expected.safetensors")
    for path in folder.iterdir():
        path.chmod(0o644)  # save_file leaves 0600
    print(f"{name}: std of logits {logits.std():.2f}")
    if getattr(config, "sliding_window", None):
        moved = (logits_of(load(folder, sliding_window=None), ids) - logits).abs().amax(dim=1)
        assert moved[:8].max() < 1e-4 and moved[8:].min() > 1e-2, f"{name}: window without effect"


def check(name):
    expected = load_file(HERE / name / "expected.safetensors")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(shutil.copytree(HERE / name, scratch, dirs_exist_ok=True))
        if int(transformers.__version__.split(".")[0]) < 5:
            # It would silently ignore rope_parameters.
            write_old_form(folder / "config.json", [], {})
        logits = logits_of(load(folder), expected["ids"].long().tolist())
    error = (logits - expected["logits"]).abs().max().item()
    print(f"{name}: largest difference {error:.1e}")
    assert error < 2e-5, name


def make_smollm2(gguf):
    """Reference for a real model: the top of the last position's logits, and a perplexity."""
    text = ("The Amazon rainforest is the largest tropical forest in the world. It covers most of "
            "the Amazon basin in South America, and it is home to millions of species of plants, "
            "insects and birds.")
    gguf = gguf.resolve()
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"][:32]
    assert len(ids) == 32
    logits = logits_of(load(gguf.parent, gguf_file=gguf.name), ids).double()
    nll = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:])).item()
    top = torch.topk(logits[-1], 20)
    reference = {
        "model": gguf.name,
        "sha256": hashlib.sha256(gguf.read_bytes()).hexdigest(),
        "text": tokenizer.decode(ids),
        "ids": ids,
        "mean_nll": nll,
        "perplexity": math.exp(nll),
        "last_top_ids": top.indices.tolist(),
        "last_top_logits": [round(value, 5) for value in top.values.tolist()],
    }
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in reference.items()]
    (HERE / "smollm2_reference.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"smollm2: perplexity {reference['perplexity']:.4f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smollm2", type=Path, metavar="GGUF")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print(f"transformers {transformers.__version__}, torch {torch.__version__}")
    for seed, (name, case) in enumerate(CASES.items()):
        check(name) if args.check else make(name, case, seed)
    if args.smollm2:
        make_smollm2(args.smollm2)


if __name__ == "__main__":
    main()
