"""Decoding of transformers + PEFT with many adapters in one batch: the case of `janus bench bank`. Prints one JSON line.

    python peer_bank.py --shape janus-pro-1b --dtype bf16 --adapters 16 --rows 16 --prompt-tokens 640

PEFT's mixed batch takes the name of an adapter for each row (`adapter_names`). Steps with the same adapter for all rows, with a
different one for each, and with none (`__base__`) take turns behind the same prompts.
"""

import torch
from peft import LoraConfig, get_peft_model
from transformers import DynamicCache

import peer_model

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def adapted(model, options):
    """The language model and its head with so many adapters of the decoder's seven maps, whose B is not zero."""
    config = lambda: LoraConfig(
        r=options.rank, lora_alpha=options.rank, target_modules=r".*language_model.*\.(" + "|".join(TARGETS) + ")"
    )
    names = [f"adapter-{number}" for number in range(options.adapters)]
    model = get_peft_model(model, config(), adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, config())
    for name, value in model.named_parameters():
        if "lora_" in name:
            value.data = value.data.to(peer_model.DTYPES[options.dtype])
            if "lora_B" in name:
                value.data += 1e-3
    return model.eval(), names


def main():
    parser = peer_model.arguments(__doc__)
    parser.add_argument("--adapters", type=int, default=16)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=11, help="steps of each kind; the first is left out")
    options = parser.parse_args()
    peer_model.prepare(options)
    model, names = adapted(peer_model.build(options.shape, options.dtype), options)
    kinds = {
        "different": [names[row % len(names)] for row in range(options.rows)],
        "same": [names[0]] * options.rows,
        "base": ["__base__"] * options.rows,
    }
    seconds = {kind: [] for kind in kinds}
    with torch.inference_mode():
        ids = peer_model.text_ids(model, 1, options.prompt_tokens)
        caches, tokens = {}, {}
        for kind, own in kinds.items():
            # One row's keys and values for all: what they hold does not change what a step costs.
            cache = DynamicCache()
            model(input_ids=ids, past_key_values=cache, use_cache=True, adapter_names=own[:1], logits_to_keep=1)
            cache.batch_repeat_interleave(options.rows)
            caches[kind], tokens[kind] = cache, ids[:, -1:].repeat(options.rows, 1)
        order = list(kinds)
        for number in range(options.rounds):
            for place in range(len(order)):
                kind = order[(number + place) % len(order)]
                clock = peer_model.moment()
                out = model(
                    input_ids=tokens[kind], past_key_values=caches[kind], use_cache=True, adapter_names=kinds[kind]
                )
                tokens[kind] = out.logits[:, -1:].argmax(-1)
                if number > 0:
                    seconds[kind].append(peer_model.moment() - clock)
    medians = {f"{kind}_seconds": peer_model.median(own) for kind, own in seconds.items()}
    ratios = [different / same for different, same in zip(seconds["different"], seconds["same"])]
    peer_model.report(
        shape=options.shape, dtype=options.dtype, threads=options.threads, adapters=options.adapters, rank=options.rank,
        rows=options.rows, prompt_tokens=options.prompt_tokens, rounds=options.rounds,
        different_to_same=peer_model.median(ratios), **medians,
    )


if __name__ == "__main__":
    main()
