"""The model that the peer's scripts measure: transformers' Janus of a named shape with random weights, nothing downloaded."""

import argparse
import json
import os
import platform
import resource
import sys
import time

import torch
from transformers import JanusConfig, JanusForConditionalGeneration, JanusVisionConfig, LlamaConfig
from transformers.models.janus.configuration_janus import JanusVQVAEConfig

# Text tokens beside an image, the supervised ones among them, and tokens of a prompt that an image is drawn for.
TEXT_TOKENS, SUPERVISED_TOKENS, PROMPT_TOKENS = 64, 32, 32

# The sizes of `janus bench --shape`, by the names of transformers' configurations.
SHAPES = {
    "janus-pro-1b": dict(
        text=dict(hidden_size=2048, intermediate_size=5632, num_hidden_layers=24, num_attention_heads=16, vocab_size=102400),
        vision=dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, image_size=384, patch_size=16),
        vq=dict(),
        ids=dict(bos=100000, eos=100001, pad=100002, boi=100003, image=100581),
    ),
    "janus-pro-7b": dict(
        text=dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=30, num_attention_heads=32, vocab_size=102400),
        vision=dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, image_size=384, patch_size=16),
        vq=dict(),
        ids=dict(bos=100000, eos=100001, pad=100015, boi=100016, image=100594),
    ),
    "janus-small": dict(
        text=dict(hidden_size=128, intermediate_size=352, num_hidden_layers=4, num_attention_heads=4, vocab_size=384),
        vision=dict(hidden_size=96, num_hidden_layers=3, num_attention_heads=3, image_size=64, patch_size=8),
        vq=dict(num_embeddings=256, latent_channels=64, base_channels=32, channel_multiplier=[1, 1, 2, 2], num_res_blocks=1),
        ids=dict(bos=256, eos=257, pad=258, boi=259, image=261),
    ),
}
DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}


def arguments(description):
    """What all scripts are told."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--shape", choices=SHAPES, default="janus-pro-1b")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    parser.add_argument("--device", default="cpu", help="as torch names it: cpu, cuda, cuda:0")
    return parser


def prepare(options):
    """Settles where and on how many threads everything is made, and the seed."""
    torch.set_num_threads(options.threads)
    torch.set_default_device(options.device)
    torch.manual_seed(1)


def moment():
    """The time when what was asked of the device so far is done."""
    if torch.get_default_device().type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def configuration(shape):
    sizes = SHAPES[shape]
    text, vision, ids = sizes["text"], sizes["vision"], sizes["ids"]
    grid = vision["image_size"] // vision["patch_size"]
    width = text["hidden_size"]
    return JanusConfig(
        text_config=LlamaConfig(
            **text,
            num_key_value_heads=text["num_attention_heads"],
            max_position_embeddings=16384,
            rms_norm_eps=1e-6,
            bos_token_id=ids["bos"],
            eos_token_id=ids["eos"],
            pad_token_id=ids["pad"],
        ),
        vision_config=JanusVisionConfig(**vision, projection_dim=width, num_image_tokens=grid * grid),
        vq_config=JanusVQVAEConfig(**sizes["vq"], projection_dim=width, image_token_embed_dim=width, num_patches=grid),
        image_token_id=ids["image"],
        tie_word_embeddings=False,
        attn_implementation="sdpa",
    )


def build(shape, dtype):
    """The whole model, as `from_pretrained` gives it: every weight exists once, in the wanted type, and is drawn in place."""
    config = configuration(shape)
    torch.set_default_dtype(DTYPES[dtype])
    with torch.device("meta"):
        model = JanusForConditionalGeneration(config)
    model = model.to_empty(device=torch.get_default_device())
    torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.uniform_(-0.02 * 3**0.5, 0.02 * 3**0.5)  # deviation 0.02
            else:
                parameter.fill_(1.0)
        # What `to_empty` left undrawn besides the weights. Rotary frequencies stay f32, as transformers keeps them.
        for name, buffer in model.named_buffers():
            if name.endswith("position_ids"):
                buffer.copy_(torch.arange(buffer.numel()).view_as(buffer))
        rotary = model.model.language_model.rotary_emb
        dims = config.text_config.hidden_size // config.text_config.num_attention_heads
        frequencies = 1.0 / (10000.0 ** (torch.arange(0, dims, 2, dtype=torch.float32) / dims))
        for name in ("inv_freq", "original_inv_freq"):
            if hasattr(rotary, name):
                setattr(rotary, name, frequencies.clone())
    return model


def text_ids(model, rows, count):
    """Ids of text, none of which means anything to the model."""
    special = min(model.config.text_config.bos_token_id, model.config.image_token_id)
    return torch.randint(0, special, (rows, count))


def question(model, rows):
    """One token of text, one image, the rest of the text."""
    ids = text_ids(model, rows, TEXT_TOKENS)
    patches = model.config.vision_config.num_image_tokens
    image = torch.full((rows, patches), model.config.image_token_id)
    return torch.cat([ids[:, :1], image, ids[:, 1:]], dim=1)


def pixels(model, rows, dtype):
    side = model.config.vision_config.image_size
    return torch.rand(rows, 3, side, side).mul_(2).sub_(1).to(DTYPES[dtype])


def median(values):
    values = sorted(values)
    half = len(values) // 2
    return values[half] if len(values) % 2 else (values[half - 1] + values[half]) / 2


def report(**figures):
    """One JSON line, with the largest resident memory and the versions."""
    import peft
    import transformers

    if torch.get_default_device().type == "cuda":
        figures["peak_device_bytes"] = torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    figures["peak_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    figures["versions"] = dict(
        python=platform.python_version(), torch=torch.__version__, transformers=transformers.__version__, peft=peft.__version__
    )
    print(json.dumps(figures))
