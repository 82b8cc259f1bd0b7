#!/usr/bin/env python3
"""Holds a Hugging Face artifact against stock transformers and PEFT.

    python3 -m venv venv && venv/bin/pip install torch transformers peft
    build/elastify export OUT --hf --type f32 -o ART
    venv/bin/python tests/interop/hf_parity.py OUT ART [--text heldout.txt --elastify build/elastify]

OUT is the reordered directory that ART was exported from. Every level is loaded by AutoModelForCausalLM, its adapter by
PeftModel, and its logits are compared with those of OUT's full model with the inputs of o_proj and down_proj that the level leaves
out set to zero and the level's repairs applied by hand, all in float64: that is what a level means. With a text, the tokenizer is loaded as well and
the mean negative log-likelihood is compared with `elastify eval ART --level L`. Exit status 1 if anything differs.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def load(directory):
    model, report = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report.get(kind):
            sys.exit(f"{directory}: {kind}: {report[kind]}")
    return model.double().eval()  # closed-form repairs can be ill-conditioned: float32 blurs them to 1e-2


def load_double(path):
    return {name: tensor.double() for name, tensor in load_file(path).items()}


def mean_nll(model, rows):
    logits = torch.cat([model(row[None]).logits[0, :-1].double() for row in rows])
    return torch.nn.functional.cross_entropy(logits, rows[:, 1:].reshape(-1)).item()


class Masked:
    """The full model at a level's widths, with the level's repairs, as hooks on o_proj and down_proj."""

    def __init__(self, model, plan, repairs):
        self.hooks = []
        config = model.config
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        group = config.num_attention_heads // config.num_key_value_heads * head_dim
        own, lora, scale = {}, {}, {}
        if (repairs / "weights.safetensors").exists():
            own = load_double(repairs / "weights.safetensors")
        if (repairs / "adapter_model.safetensors").exists():
            lora = load_double(repairs / "adapter_model.safetensors")
            scale = json.loads((repairs / "adapter_config.json").read_text())
        for index, layer in enumerate(model.model.layers):
            for name, module, kept in (
                    ("self_attn.o_proj", layer.self_attn.o_proj, plan["kv_groups"][index] * group),
                    ("mlp.down_proj", layer.mlp.down_proj, plan["d_ff"][index])):
                place = f"model.layers.{index}.{name}"
                a = lora.get(f"base_model.model.{place}.lora_A.weight")
                b = lora.get(f"base_model.model.{place}.lora_B.weight")
                factor = 0.0
                if a is not None:
                    rank = scale["rank_pattern"].get(place, scale["r"])
                    assert rank == a.shape[0]
                    factor = scale["alpha_pattern"].get(place, scale["lora_alpha"]) / rank
                parts = (kept, own.get(f"{place}.weight"), own.get(f"{place}.bias"), a, b, factor)
                self.hooks.append(module.register_forward_hook(self.hook(*parts)))

    @staticmethod
    def hook(kept, weight, bias, a, b, factor):
        def run(module, inputs, _):
            x = inputs[0][..., :kept]
            y = x @ (module.weight[:, :kept] if weight is None else weight).T
            for addend in (module.bias, bias):
                y = y if addend is None else y + addend
            return y if a is None else y + factor * (x @ a.T) @ b.T
        return run

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("art", type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--elastify", default="build/elastify")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="of logits, over their standard deviation")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_grad_enabled(False)

    manifest = json.loads((args.art / "manifest.json").read_text())
    plan = json.loads((args.out / "plan.json").read_text())
    levels = {level["nominal"]: level for level in plan["levels"]}
    adapters = {entry["level"]: entry["name"] for entry in manifest.get("adapters", [])}
    whole = load(args.out)
    for parameter in whole.parameters():  # and no buffers: the rotary frequencies stay as they are
        parameter.copy_(parameter.to(DTYPES[manifest["type"]]).double())
    n_vocab = whole.config.vocab_size
    rows = torch.randint(n_vocab, (2, 64))
    jsonl = None
    if args.text:
        text = args.text.read_text()[:4000]
        tokenizer = AutoTokenizer.from_pretrained(args.art / "full")
        ids = tokenizer(text).input_ids
        rows = torch.tensor(ids[: len(ids) // 128 * 128]).reshape(-1, 128)
        work = tempfile.TemporaryDirectory()
        jsonl = Path(work.name) / "text.jsonl"
        jsonl.write_text(json.dumps({"text": text}) + "\n")

    worst, plain = 0.0, whole(rows[:2]).logits.double()
    for entry in manifest["files"]:
        directory = args.art / entry["name"]
        model = load(directory)
        assert type(model).__name__ == entry["architecture"]
        assert model.num_parameters() == entry["n_params"], (model.num_parameters(), entry["n_params"])
        if entry["level"] in adapters:
            from peft import PeftModel
            adapter = args.art / adapters[entry["level"]]
            model = PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False).double().eval()
        with Masked(whole, levels[entry["level"]], args.out / "repairs" / entry["name"]):
            expected = whole(rows[:2]).logits.double()
        found = model(rows[:2]).logits.double()
        difference = ((found - expected).abs().max() / expected.std()).item()
        uncut = ((found - plain).abs().max() / plain.std()).item()
        assert entry["level"] >= 1 or uncut > 100 * args.tolerance, "the level is the full model"
        worst = max(worst, difference)
        line = f"{entry['name']:<10} {entry['architecture']:<18} logits {difference:.1e} (uncut {uncut:.1e})"
        if jsonl:
            nll = mean_nll(model, rows)
            answer = json.loads(subprocess.run(
                [args.elastify, "eval", args.art, "--level", str(entry["level"]), "--data", jsonl, "--seq", "128",
                 "--tokens", str(rows.numel()), "--json", "--quiet"], check=True, stdout=subprocess.PIPE).stdout)
            assert answer["tokens"] == rows.shape[0] * 127, answer["tokens"]
            off = abs(answer["nll"] - nll) / nll
            worst = max(worst, off)
            line += f"  nll {nll:.6f}, elastify {answer['nll']:.6f} ({off:.1e})  repairs {answer['repairs']}"
            ids = AutoTokenizer.from_pretrained(directory)(text).input_ids
            assert ids[: rows.numel()] == rows.flatten().tolist()
        print(line, flush=True)
    print(f"largest difference {worst:.1e}, tolerance {args.tolerance:.0e}")
    return 0 if worst <= args.tolerance else 1


if __name__ == "__main__":
    sys.exit(main())
