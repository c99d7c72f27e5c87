"""A LoRA training step of transformers + PEFT on random weights: the case of `janus bench train`. Prints one JSON line.

    python peer_train.py --shape janus-pro-1b --dtype bf16
    python peer_train.py --dtype bf16 --recompute --targets decoder,vision,aligner
    python peer_train.py --dtype bf16 --task generate
"""

import torch
from peft import LoraConfig, get_peft_model

import peer_model
from peer_model import PROMPT_TOKENS, SUPERVISED_TOKENS

TARGETS = {
    "decoder": r"model\.language_model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)",
    "vision": r"model\.vision_model\.encoder\.layers\.\d+\.(self_attn\.(q_proj|k_proj|v_proj|projection_layer)|mlp\.fc[12])",
    "aligner": r"model\.aligner\.(fc1|hidden_layers\.\d+)",
    "generation": r"model\.(generation_aligner\.(fc1|hidden_layers\.\d+)|generation_head\.(proj_out|vision_head))",
}


def understand(model, peft_model, rows, dtype, only_supervised):
    """The loss as `Trainer` computes it; with `only_supervised` the head reads no position whose logits nobody needs."""
    ids = peer_model.question(model, rows)
    labels = ids.clone()
    labels[:, :-SUPERVISED_TOKENS] = -100
    pixels = peer_model.pixels(model, rows, dtype)

    # Without an attention mask: nothing is padded, and attention takes its fastest path.
    def loss():
        if not only_supervised:
            return peft_model(input_ids=ids, pixel_values=pixels, labels=labels, use_cache=False).loss
        logits = peft_model(
            input_ids=ids, pixel_values=pixels, use_cache=False, logits_to_keep=SUPERVISED_TOKENS + 1
        ).logits[:, :-1]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels[:, -SUPERVISED_TOKENS:].flatten())

    return loss, ids.numel()


def generate(model, rows):
    """Image tokens after a prompt, by the model's own modules; its `forward` knows the text head only."""
    prompt = peer_model.text_ids(model, rows, PROMPT_TOKENS)
    count = model.config.vision_config.num_image_tokens
    codes = torch.randint(0, model.config.vq_config.num_embeddings, (rows, count))

    def loss():
        text = model.get_input_embeddings()(prompt)
        image = model.prepare_embeddings_for_image_generation(codes[:, :-1])
        embeds = torch.cat([text, image], dim=1)
        hidden = model.model.language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
        logits = model.model.generation_head(hidden[:, PROMPT_TOKENS - 1 :])
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), codes.flatten())

    return loss, rows * (PROMPT_TOKENS + count)


def main():
    parser = peer_model.arguments(__doc__)
    parser.add_argument("--task", choices=["understand", "generate"], default="understand")
    parser.add_argument("--targets", default="decoder", help="with commas: " + ", ".join(TARGETS))
    parser.add_argument("--steps", type=int, default=5, help="the first is left out of the median")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--recompute", action="store_true", help="transformers' gradient checkpointing")
    parser.add_argument("--only-supervised", action="store_true", help="logits of supervised positions only, which `Trainer` does not do")
    parser.add_argument("--bf16-adapters", action="store_true", help="adapters in the base's type instead of PEFT's f32")
    options = parser.parse_args()
    if options.steps < 2:
        parser.error("--steps: at least 2")
    unknown = [name for name in options.targets.split(",") if name not in TARGETS]
    if unknown:
        parser.error(f"--targets: {', '.join(unknown)} is none of {', '.join(TARGETS)}")
    peer_model.prepare(options)

    clock = peer_model.moment()
    model = peer_model.build(options.shape, options.dtype)
    opening_seconds = peer_model.moment() - clock
    targets = "|".join(TARGETS[name] for name in options.targets.split(","))
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=f"({targets})")
    peft_model = get_peft_model(model, lora, autocast_adapter_dtype=not options.bf16_adapters)
    if options.recompute:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    peft_model.train()
    trainable = [parameter for parameter in peft_model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-4, weight_decay=0.0, fused=True)
    if options.task == "understand":
        loss, tokens = understand(model, peft_model, options.batch, options.dtype, options.only_supervised)
    else:
        loss, tokens = generate(model, options.batch)

    seconds, value = [], 0.0
    for _ in range(options.steps):
        clock = peer_model.moment()
        value = loss()
        value.backward()
        # As `Trainer` and `janus train` do.
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        value = value.item()
        seconds.append(peer_model.moment() - clock)
    step_seconds = peer_model.median(seconds[1:])
    peer_model.report(
        shape=options.shape,
        dtype=options.dtype,
        threads=options.threads,
        task=options.task,
        targets=options.targets.split(","),
        recompute=options.recompute,
        batch=options.batch,
        tokens=tokens,
        steps=options.steps,
        tokens_per_second=tokens / step_seconds,
        step_seconds=step_seconds,
        first_step_seconds=seconds[0],
        opening_seconds=opening_seconds,
        trainable_parameters=sum(parameter.numel() for parameter in trainable),
        loss=value,
    )


if __name__ == "__main__":
    main()
