#!/usr/bin/env python3
"""Holds a Hugging Face artifact against stock transformers and PEFT.

    python3 -m venv venv && venv/bin/pip install torch transformers peft
    build/elastify export OUT --hf --type f32 -o ART
    venv/bin/python tests/interop/hf_parity.py OUT ART [--text heldout.txt --elastify build/elastify]
    venv/bin/python tests/interop/hf_parity.py OUT ART --peft-adapters 4 [...]

OUT is the reordered directory that ART was exported from. Every level is loaded by AutoModelForCausalLM, its adapter by PeftModel. Its logits
are compared with those of OUT's full model at the level's widths, with the level's repairs applied by hand: inputs of o_proj and down_proj that
the level leaves out are zero, and adapters, weights, biases and norms of the level act on the parts that it keeps. All of it is in float64.
With a text, the tokenizer is loaded as well, and the mean negative log-likelihood is compared with `elastify eval ART --level L`.

With --peft-adapters RANK, PEFT itself puts adapters of random numbers on all seven matrices of every level of ART. They take the place of the
repairs in a copy of OUT, which is exported again and compared in the same way. Exit status 1 if anything differs.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

ATTENTION = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
MLP = ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
NORMS = ["input_layernorm", "post_attention_layernorm"]
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


def by_pattern(patterns, place, default):
    """The value of PEFT's rank_pattern or alpha_pattern: the first key that is the end of the module's name."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", place)), default)


class Masked:
    """The full model at a level's widths, with the level's repairs: hooks on the matrices, other weights in the norms."""

    def __init__(self, model, plan, repairs):
        self.hooks, self.norms = [], []
        config = model.config
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        group = config.num_attention_heads // config.num_key_value_heads * head_dim
        self.own, self.lora, self.config = {}, {}, {}
        if (repairs / "weights.safetensors").exists():
            self.own = load_double(repairs / "weights.safetensors")
        if (repairs / "adapter_model.safetensors").exists():
            self.lora = load_double(repairs / "adapter_model.safetensors")
            self.config = json.loads((repairs / "adapter_config.json").read_text())
        for index in range(config.num_hidden_layers):
            groups, d_ff = plan["kv_groups"][index], plan["d_ff"][index]
            widths = dict(zip(ATTENTION, (groups * group, groups * head_dim, groups * head_dim, groups * group)))
            for name in ATTENTION + MLP:
                place = f"model.layers.{index}.{name}"
                module = model.get_submodule(place)
                narrow = widths.get(name, d_ff)
                n_in, n_out = (narrow, None) if name in ("self_attn.o_proj", "mlp.down_proj") else (None, narrow)
                self.hooks.append(module.register_forward_hook(self.hook(n_in, n_out, *self.parts(place))))
            for name in NORMS:
                self.replace_norm(model, f"model.layers.{index}.{name}")
        self.replace_norm(model, "model.norm")

    def parts(self, place):
        a = self.lora.get(f"base_model.model.{place}.lora_A.weight")
        b = self.lora.get(f"base_model.model.{place}.lora_B.weight")
        factor = 0.0
        if a is not None:
            rank = by_pattern(self.config["rank_pattern"], place, self.config["r"])
            assert rank == a.shape[0]
            factor = by_pattern(self.config["alpha_pattern"], place, self.config["lora_alpha"]) / rank
        return self.own.get(f"{place}.weight"), self.own.get(f"{place}.bias"), a, b, factor

    def replace_norm(self, model, place):
        if (own := self.own.get(f"{place}.weight")) is not None:
            parameter = model.get_parameter(f"{place}.weight")
            self.norms.append((parameter, parameter.clone()))
            parameter.copy_(own)

    @staticmethod
    def hook(n_in, n_out, weight, bias, a, b, factor):
        def run(module, inputs, _):
            x = inputs[0][..., :n_in]
            whole = x @ module.weight[:, :n_in].T
            kept = whole[..., :n_out] if weight is None else x @ weight.T
            if module.bias is not None:
                kept = kept + module.bias[:n_out]
            if bias is not None:
                kept = kept + bias
            if a is not None:
                kept = kept + factor * (x @ a.T) @ b.T
            return torch.cat([kept, whole[..., kept.shape[-1]:]], dim=-1)  # nothing reads the rest
        return run

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()
        for parameter, before in self.norms:
            parameter.copy_(before)


def with_peft_adapters(args, work):
    """A copy of OUT with adapters that PEFT made, and its export.

    Ranks and alphas differ by module and layer, by patterns of the kinds that PEFT takes.
    """
    from peft import LoraConfig, get_peft_model
    out, art, rank = work / "out", work / "art", args.peft_adapters
    shutil.copytree(args.out, out)
    shutil.rmtree(out / "repairs", ignore_errors=True)
    manifest = json.loads((args.art / "manifest.json").read_text())
    config = LoraConfig(r=rank, lora_alpha=2 * rank, task_type="CAUSAL_LM",
                        target_modules=[name.split(".")[1] for name in ATTENTION + MLP],
                        rank_pattern={r"layers\.0\.self_attn\..*": rank + 1, "up_proj": rank + 3},
                        alpha_pattern={"k_proj": rank, r"0\.mlp\.(gate|up)_proj": 3 * rank})
    for entry in manifest["files"]:
        if entry["level"] >= 1:
            continue
        model = get_peft_model(load(args.art / entry["name"]), config)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.1)
                parameter.data = parameter.data.float()  # as PEFT saves them after training
        model.save_pretrained(out / "repairs" / entry["name"])
    subprocess.run([args.elastify, "export", out, "--hf", "--type", "f32", "-o", art, "--quiet"], check=True,
                   stdout=subprocess.DEVNULL)
    return out, art


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("art", type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--elastify", default="build/elastify")
    parser.add_argument("--peft-adapters", type=int, metavar="RANK")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="of logits, over their standard deviation")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_grad_enabled(False)

    if args.peft_adapters:
        made = tempfile.TemporaryDirectory()
        args.out, args.art = with_peft_adapters(args, Path(made.name))
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
