"""Inference of transformers on random weights: the cases of `janus bench understand` and `generate`. Prints one JSON line.

    python peer_inference.py understand --shape janus-pro-1b --dtype bf16
    python peer_inference.py generate --shape janus-pro-1b --dtype bf16 --tokens 32
    python peer_inference.py batch --shape janus-pro-1b --dtype bf16 --rows 16

`batch` answers so many rows in one call, as `janus batch` does.
"""

import torch
from transformers import LogitsProcessor, LogitsProcessorList

import peer_model
from peer_model import PROMPT_TOKENS


class Moments(LogitsProcessor):
    """Notes when each token comes, and changes nothing. Text mode takes it as a streamer, which is shown the prompt first;
    image mode knows no streamers and takes it as a processor of logits."""

    def __init__(self):
        self.moments = [peer_model.moment()]
        self.prompt_seen = False

    def __call__(self, input_ids, scores):
        self.moments.append(peer_model.moment())
        return scores

    def put(self, ids):
        if self.prompt_seen:
            self.moments.append(peer_model.moment())
        self.prompt_seen = True

    def end(self):
        pass

    def seconds(self):
        return [b - a for a, b in zip(self.moments, self.moments[1:])]


def understand(model, options):
    """Answers to one image and 64 text tokens; the first answer is left out where there are several."""
    ids = peer_model.question(model, 1)
    pixels = peer_model.pixels(model, 1, options.dtype)
    count = 1 + (options.tokens or 32)
    first, steps = [], []
    for answer in range(options.rounds):
        moments = Moments()
        model.generate(
            input_ids=ids,
            pixel_values=pixels,
            attention_mask=torch.ones_like(ids),
            generation_mode="text",
            do_sample=False,
            min_new_tokens=count,
            max_new_tokens=count,
            streamer=moments,
        )
        if answer == 0 and options.rounds > 1:
            continue
        seconds = moments.seconds()
        first.append(seconds[0])
        steps.extend(seconds[1:])
    step_seconds = peer_model.median(steps)
    return dict(
        tokens_per_second=1 / step_seconds,
        step_seconds=step_seconds,
        first_token_seconds=peer_model.median(first),
        prompt_tokens=ids.shape[1],
        tokens=count - 1,
        rounds=options.rounds,
    )


def batch(model, options):
    """Rows of one image and 64 text tokens in one call; the first call is left out where there are several."""
    ids = peer_model.question(model, options.rows)
    pixels = peer_model.pixels(model, options.rows, options.dtype)
    count = 1 + (options.tokens or 31)
    seconds = []
    for _ in range(options.rounds):
        clock = peer_model.moment()
        model.generate(
            input_ids=ids,
            pixel_values=pixels,
            attention_mask=torch.ones_like(ids),
            generation_mode="text",
            do_sample=False,
            min_new_tokens=count,
            max_new_tokens=count,
        )
        seconds.append(peer_model.moment() - clock)
    whole = peer_model.median(seconds[1:] or seconds)
    return dict(
        rows=options.rows, batch_seconds=whole, row_seconds=whole / options.rows, prompt_tokens=ids.shape[1], tokens=count
    )


def generate(model, options):
    """The codes of one image with guidance 5, and its decoding."""
    ids = peer_model.text_ids(model, 1, PROMPT_TOKENS)
    special = peer_model.SHAPES[options.shape]["ids"]
    ids[0, 0], ids[0, -1] = special["bos"], special["boi"]
    model.generation_config.generation_kwargs = {"boi_token_id": special["boi"]}
    vision = model.config.vision_config
    whole = vision.num_image_tokens
    count = min(options.tokens or whole, whole)
    model.model.vision_model.config.num_image_tokens = count
    moments = Moments()
    model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        generation_mode="image",
        do_sample=False,
        guidance_scale=5,
        max_new_tokens=count,
        logits_processor=LogitsProcessorList([moments]),
    )
    seconds = moments.seconds()
    codes = torch.randint(0, model.config.vq_config.num_embeddings, (1, whole))
    for _ in range(2):
        clock = peer_model.moment()
        model.decode_image_tokens(codes)
        vq_decode_seconds = peer_model.moment() - clock
    step_seconds = peer_model.median(seconds[1:])
    figures = dict(
        tokens_per_second=1 / step_seconds,
        step_seconds=step_seconds,
        codes=count,
        codes_per_image=whole,
        first_code_seconds=seconds[0],
        codes_seconds=sum(seconds),
        vq_decode_seconds=vq_decode_seconds,
        prompt_tokens=PROMPT_TOKENS,
    )
    if count == whole:
        figures["image_seconds"] = sum(seconds) + vq_decode_seconds
    return figures


def main():
    parser = peer_model.arguments(__doc__)
    parser.add_argument("kind", choices=["understand", "generate", "batch"])
    parser.add_argument("--tokens", type=int, help="tokens after the first (32), or codes of the image (all)")
    parser.add_argument("--rows", type=int, default=16, help="rows of a batch")
    parser.add_argument("--rounds", type=int, default=3, help="answers; the first is left out where there are several")
    options = parser.parse_args()
    if options.tokens is not None and options.tokens < 2 or options.rounds < 1:
        parser.error("--tokens: at least 2, --rounds: at least 1")
    peer_model.prepare(options)
    clock = peer_model.moment()
    model = peer_model.build(options.shape, options.dtype).eval()
    opening_seconds = peer_model.moment() - clock
    with torch.inference_mode():
        figures = dict(understand=understand, generate=generate, batch=batch)[options.kind](model, options)
    peer_model.report(
        shape=options.shape, dtype=options.dtype, threads=options.threads, opening_seconds=opening_seconds, **figures
    )


if __name__ == "__main__":
    main()
