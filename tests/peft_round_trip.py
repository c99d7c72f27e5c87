#!/usr/bin/env python3
"""Compares `janus probe` with transformers and PEFT on the same base, adapter and input.

    python tests/peft_round_trip.py --base B --adapter A --probe-input IN --probe-output OUT

loads the base (native layout) and the adapter folder A with transformers and PEFT, checks that PEFT took every tensor of
the folder as it is, computes what IN asks for in float32, and compares that with the file OUT that
`janus probe --base B --adapter A --input IN --output OUT` wrote. It prints the largest differences and ends with exit
code 1 if one is beyond its bound.

    python tests/peft_round_trip.py --base B --make-adapter DIR [--method NAME] [--seed N]

is the other direction: it lets PEFT make an adapter of the method (LoRA where none is given) at sites of every kind that it
takes, with a copied module where it has those, and writes DIR/adapter, DIR/understand.safetensors and DIR/generate.safetensors (inputs for `janus probe`) and
DIR/understand-expected.safetensors and DIR/generate-expected.safetensors (what PEFT gives for them).

    python tests/peft_round_trip.py --base B --all-methods WORK --janus PROGRAM [--seed N]

does both for every method with the program itself: PEFT's adapters through `janus probe`, and adapters that `janus train` makes,
of three steps each, through PEFT. WORK must not be there.

    python tests/peft_round_trip.py --expected FILE --probe-output OUT

compares two such files without loading a model; `--probe-input IN` tells it which rows are padding.

Tried with torch 2.15, transformers 5.23 and PEFT 0.21.2.
"""

import argparse
import subprocess
import sys
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

# Bounds for float32, as parts of the largest value: sums in another order, nothing else.
BOUNDS = {"logits": 1e-5, "gen_logits": 1e-5, "image_features": 1e-5, "loss": 1e-5}
TARGETS = [
    "self_attn.q_proj",
    "mlp.down_proj",
    "aligner.fc1",
    "generation_head.proj_out",
    "patch_embedding",
    "embed_tokens",
    "generation_embeddings",
]
COPIED = ["generation_head.vision_head"]
EMBEDDINGS = ["embed_tokens", "generation_embeddings"]
CONVOLUTIONS = ["patch_embedding"]
LINEAR = [target for target in TARGETS if target not in EMBEDDINGS + CONVOLUTIONS]
# Sites that have a bias in the base.
BIASED = ["aligner.fc1", "generation_head.proj_out", "mlp.fc1"]


def configs():
    """PEFT's configuration of every method by name."""
    from peft import IA3Config, LoHaConfig, LoKrConfig, LoraConfig, VeraConfig

    pair = {"r": 4, "lora_alpha": 6, "target_modules": TARGETS}
    product = {"r": 3, "alpha": 5, "target_modules": LINEAR + CONVOLUTIONS}
    return {
        "lora": LoraConfig(**pair, modules_to_save=COPIED, rank_pattern={"patch_embedding": 3}),
        "rslora": LoraConfig(**pair, use_rslora=True, alpha_pattern={"aligner.fc1": 3}),
        "dora": LoraConfig(**pair, use_dora=True),
        "dora-rslora": LoraConfig(**pair, use_dora=True, use_rslora=True),
        "lora-bias": LoraConfig(r=4, lora_alpha=6, target_modules=BIASED, lora_bias=True),
        "loha": LoHaConfig(**product),
        "loha-effective": LoHaConfig(**product, use_effective_conv2d=True),
        "lokr": LoKrConfig(**product),
        "lokr-both": LoKrConfig(r=1, alpha=2, target_modules=LINEAR + CONVOLUTIONS, decompose_both=True, decompose_factor=4),
        "lokr-effective": LoKrConfig(r=1, alpha=2, target_modules=LINEAR + CONVOLUTIONS, use_effective_conv2d=True),
        "vera": VeraConfig(r=5, target_modules=LINEAR, projection_prng_key=3, save_projection=True),
        "ia3": IA3Config(
            target_modules=LINEAR + CONVOLUTIONS, feedforward_modules=["mlp.down_proj", "patch_embedding"]
        ),
    }


# A short run over both sides of the model.
RECIPE = """
[base]
path = "base"
dtype = "f32"
[adapter]
targets = ["all"]
[[data]]
name = "questions"
task = "understand"
train = "synth:inspection?rows=16&seed=1&size=64"
[[data]]
name = "pictures"
task = "generate"
train = "synth:inspection?rows=16&seed=1&size=64"
columns = { prompt = "caption" }
[train]
steps = 3
batch_size = 2
learning_rate = 1e-2
[output]
dir = "run"
"""
# What it is told for each method.
RECIPES = {
    "lora": [],
    "rslora": ["adapter.rslora=true", "adapter.init=gaussian"],
    "pissa": ["adapter.init=pissa", "adapter.rank=4"],
    "olora-rslora": ["adapter.init=olora", "adapter.rank=4", "adapter.rslora=true", "adapter.rank_pattern={ down_proj = 3 }"],
    "eva": ["adapter.init=eva", "adapter.rank=4", "adapter.eva_rho=2.0"],
    "eva-rslora": ["adapter.init=eva", "adapter.rank=4", "adapter.eva_rho=2.0", "adapter.rslora=true"],
    "dora": ["adapter.method=dora"],
    "dora-rslora": ["adapter.method=dora", "adapter.rslora=true", "adapter.rank_pattern={ down_proj = 3 }"],
    "lora-bias": ["adapter.bias=true"],
    "lora-bias-gaussian": ["adapter.bias=true", "adapter.init=gaussian"],
    "loha": ["adapter.method=loha", "adapter.rank=3"],
    "lokr": ["adapter.method=lokr", "adapter.rank=2"],
    "lokr-both": ["adapter.method=lokr", "adapter.rank=1", "adapter.decompose_both=true", "adapter.decompose_factor=4"],
    "vera": ["adapter.method=vera", "adapter.rank=16"],
    "ia3": ["adapter.method=ia3"],
}


def load_base(folder):
    from transformers import JanusForConditionalGeneration

    model = JanusForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


def load_adapter(base, folder):
    """The base with the adapter, after a check that PEFT uses all of the folder's tensors unchanged."""
    from peft import PeftModel
    from peft.utils import get_peft_model_state_dict

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(base, folder)
    for warning in caught:
        text = str(warning.message)
        if "adapter" in text.lower() or "missing" in text.lower():
            sys.exit(f"PEFT warns: {text}")
    used = get_peft_model_state_dict(model, save_embedding_layers=False)
    stored = load_file(Path(folder) / "adapter_model.safetensors")
    stored = {name: value for name, value in stored.items() if not name.endswith(".base_layer.weight")}
    if used.keys() != stored.keys():
        sys.exit(f"PEFT's tensors are not the file's: {sorted(used.keys() ^ stored.keys())}")
    changed = [name for name in stored if not torch.equal(used[name].float(), stored[name].float())]
    if changed:
        sys.exit(f"PEFT changed {changed}")
    print(f"PEFT loads {len(stored)} tensors of {folder}")
    return model.eval()


@torch.no_grad()
def outputs(model, inputs):
    """What `janus probe` computes, from transformers' modules; `model` with or without an adapter."""
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    core = whole.model
    ids = inputs["input_ids"]
    mask = inputs.get("attention_mask", torch.ones_like(ids))
    result = {}

    embeds = core.get_input_embeddings()(ids)
    if "pixel_values" in inputs:
        features = core.aligner(core.vision_model(inputs["pixel_values"]).last_hidden_state)
        result["image_features"] = features
        placeholders = (ids == whole.config.image_token_id).unsqueeze(-1).expand_as(embeds)
        embeds = embeds.masked_scatter(placeholders, features)
    codes = inputs.get("image_tokens")
    if codes is not None:
        embeds = torch.cat([embeds, core.generation_aligner(core.generation_embeddings(codes))], dim=1)
        mask = torch.cat([mask, torch.ones_like(codes)], dim=1)

    positions = (mask.cumsum(1) - 1).clamp(min=0)
    hidden = core.language_model(
        inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False
    ).last_hidden_state
    if codes is not None:
        before = hidden[:, ids.shape[1] - 1 : ids.shape[1] - 1 + codes.shape[1]]
        result["gen_logits"] = core.generation_head(before)
        result["loss"] = F.cross_entropy(result["gen_logits"].flatten(0, 1), codes.flatten())
    else:
        result["logits"] = whole.lm_head(hidden)
        if "labels" in inputs:
            predictions, labels = result["logits"][:, :-1], inputs["labels"][:, 1:]
            result["loss"] = F.cross_entropy(predictions.flatten(0, 1), labels.flatten(), ignore_index=-100)
    return {name: value.contiguous() for name, value in result.items()}


def compare(expected, found, inputs):
    """Prints the largest difference of each figure beside its largest value; whether all are within their bounds."""
    good = True
    for name, value in expected.items():
        if name not in found:
            print(f"{name}: missing in the probe's output")
            good = False
            continue
        other = found[name].reshape(value.shape) if found[name].numel() == value.numel() else found[name]
        if other.shape != value.shape:
            print(f"{name}: shape {tuple(other.shape)}, expected {tuple(value.shape)}")
            good = False
            continue
        difference, size = (value - other.float()).abs(), value.abs()
        # Under padding the logits are arbitrary.
        if name == "logits" and "attention_mask" in inputs:
            tokens = inputs["attention_mask"].bool()
            difference, size = difference[tokens], size[tokens]
        largest, of = difference.max().item(), size.max().item()
        within = largest <= BOUNDS[name] * of
        good = good and within
        beyond = "" if within else "  BEYOND"
        print(f"{name}: largest difference {largest:.2e} of {of:.2e}, {largest / of:.1e}, bound {BOUNDS[name]:.0e}{beyond}")
    return good


def make_inputs(config):
    """One understanding and one generation input that use every part of the model."""
    text, vision, vq = config.text_config, config.vision_config, config.vq_config
    patches = (vision.image_size // vision.patch_size) ** 2
    words = torch.randint(0, min(256, text.vocab_size), (2, 2, 8))
    image = torch.full((2, patches), config.image_token_id)
    understand = {
        "input_ids": torch.cat([words[:, 0], image, words[:, 1]], dim=1),
        "pixel_values": torch.rand(2, 3, vision.image_size, vision.image_size) * 2 - 1,
    }
    mask = torch.ones_like(understand["input_ids"])
    mask[1, :3] = 0
    labels = torch.full_like(mask, -100)
    labels[:, -6:] = understand["input_ids"][:, -6:]
    understand |= {"attention_mask": mask, "labels": labels}
    generate = {
        "input_ids": torch.randint(0, min(256, text.vocab_size), (2, 9)),
        "image_tokens": torch.randint(0, vq.num_embeddings, (2, patches)),
    }
    return {"understand": understand, "generate": generate}


def make_adapter(base_folder, target, seed, method):
    from peft import get_peft_model

    torch.manual_seed(seed)
    base = load_base(base_folder)
    inputs = make_inputs(base.config)
    plain = {name: outputs(base, given) for name, given in inputs.items()}
    model = get_peft_model(base, configs()[method]).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in ("magnitude", "ia3_l", "lambda", "lora_B.default.bias")):
                parameter.add_(torch.randn_like(parameter) * 0.1)
            elif any(part in name for part in ("hada_", "lokr_")):
                parameter.normal_(0, 0.3)
            elif "lora_" in name:
                parameter.normal_(0, 0.3 / parameter.shape[-1] ** 0.5 if "embedding" not in name else 0.05)
            elif ".modules_to_save." in name:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    target.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(target / "adapter")
    for name, given in inputs.items():
        found = outputs(model, given)
        moved = {key: (found[key] - plain[name][key]).abs().max().item() for key in found}
        print(f"{name}: the adapter moves " + ", ".join(f"{key} by {by:.2f}" for key, by in moved.items()))
        if min(moved.values()) < 1e-3:
            sys.exit("the adapter moves too little to tell anything")
        save_file({key: value.contiguous() for key, value in given.items()}, target / f"{name}.safetensors")
        save_file(found, target / f"{name}-expected.safetensors")
    print(f"wrote {target}")


def all_methods(base, work, janus, seed):
    """Both directions for every method; whether all are within their bounds."""
    work.mkdir(parents=True)
    run = lambda *arguments: subprocess.run([janus, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)
    good = True

    def probed(adapter, given, name):
        out = work / f"{name}.out"
        run("probe", "--base", base, "--adapter", adapter, "--input", given, "--output", out)
        return load_file(out)

    for method in configs():
        made = work / f"peft-{method}"
        make_adapter(base, made, seed, method)
        for kind in ("understand", "generate"):
            given = made / f"{kind}.safetensors"
            found = probed(made / "adapter", given, f"peft-{method}-{kind}")
            print(f"PEFT's {method} in janus, {kind}:")
            good = compare(load_file(made / f"{kind}-expected.safetensors"), found, load_file(given)) and good
    given = {kind: work / "peft-lora" / f"{kind}.safetensors" for kind in ("understand", "generate")}
    recipe = work / "recipe.toml"
    recipe.write_text(RECIPE)
    for method, keys in RECIPES.items():
        folder = work / f"janus-{method}"
        run("train", recipe, *keys, f"base.path={Path(base).resolve()}", f"output.dir={folder}")
        model = load_adapter(load_base(base), folder)
        for kind, path in given.items():
            inputs = load_file(path)
            print(f"janus' {method} in PEFT, {kind}:")
            good = compare(outputs(model, inputs), probed(folder, path, f"janus-{method}-{kind}"), inputs) and good
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", help="folder of the base, native layout")
    parser.add_argument("--adapter", help="adapter folder; absent: the base alone")
    parser.add_argument("--probe-input", help="input of `janus probe`")
    parser.add_argument("--probe-output", help="output of `janus probe`")
    parser.add_argument("--expected", help="compare with this file instead of computing")
    parser.add_argument("--make-adapter", metavar="DIR", type=Path, help="let PEFT make an adapter and its figures")
    parser.add_argument("--method", default="lora", help="method of the adapter that PEFT makes")
    parser.add_argument("--all-methods", metavar="WORK", type=Path, help="both directions for every method")
    parser.add_argument("--janus", default="janus", help="the program, for --all-methods")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()

    if given.make_adapter:
        if not given.base:
            parser.error("--make-adapter needs --base")
        make_adapter(given.base, given.make_adapter, given.seed, given.method)
        return
    if given.all_methods:
        if not given.base:
            parser.error("--all-methods needs --base")
        sys.exit(0 if all_methods(given.base, given.all_methods, given.janus, given.seed) else 1)
    inputs = load_file(given.probe_input) if given.probe_input else {}
    if given.expected:
        expected = load_file(given.expected)
    elif given.base and given.probe_input:
        model = load_base(given.base)
        if given.adapter:
            model = load_adapter(model, given.adapter)
        expected = outputs(model, inputs)
    else:
        parser.error("give --base and --probe-input, or --expected")
    if not given.probe_output:
        parser.error("give --probe-output")
    sys.exit(0 if compare(expected, load_file(given.probe_output), inputs) else 1)


if __name__ == "__main__":
    main()
