"""How often a classifier of its own recognises what janus-nano draws, beside how often it recognises real renders.

A small convolutional network learns kind and colour of parts from renders of the world's train split. It then names both
in renders of the eval split, some of whose combinations of kind, colour and material it has not seen, and in pictures that
janus-nano draws for the captions of the same rows. A second one learns from the same renders softened at random: the first
takes any softness, which 64 codes of a picture bring with them, for another kind.

    python tests/nano_pictures.py --janus target/release/janus --base janus-nano --pictures 200

Needs torch, pyarrow and Pillow. Prints one JSON object.
"""

import argparse
import io
import json
import pathlib
import subprocess
import tempfile

import numpy
import pyarrow.parquet
import torch
from PIL import Image
from torch import nn


def rows(janus, folder, split, count):
    path = folder / f"{split}.parquet"
    command = [janus, "data", "synth", "--domain", "world", "--rows", str(count), "--seed", "1", "--size", "64"]
    subprocess.run([*command, "--split", split, "--out", str(path)], check=True, capture_output=True)
    table = pyarrow.parquet.read_table(path, columns=["image", "caption", "label"]).to_pylist()
    # Scenes with parts of two kinds have no one answer.
    return [row for row in table if " above " not in row["caption"] and " to the left of " not in row["caption"]]


def tensor(pictures):
    stack = numpy.stack([numpy.asarray(picture.convert("RGB").resize((64, 64))) for picture in pictures])
    return torch.from_numpy(stack).permute(0, 3, 1, 2).float() / 127.5 - 1


class Network(nn.Module):
    """Names each of several attributes of a picture."""

    def __init__(self, classes):
        super().__init__()

        def block(inputs, outputs):
            return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]

        layers = [*block(3, 24), *block(24, 48), *block(48, 96), nn.Conv2d(96, 96, 3, padding=1), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten())
        self.heads = nn.ModuleDict({name: nn.Linear(96, count) for name, count in classes.items()})

    def forward(self, pixels):
        features = self.body(pixels)
        return {name: head(features) for name, head in self.heads.items()}


def attributes(row):
    """Of a caption such as `Two large orange wooden wedges, ...`: its parts are of one kind and colour."""
    return {"kind": row["label"], "colour": row["caption"].split(",")[0].split()[2]}


def softened(pixels):
    """Blurred by a Gaussian of up to 1.6 pixels, the same for all, and noisy."""
    deviation = 1.6 * float(torch.rand(1)) + 1e-3
    weights = torch.exp(-(torch.arange(-4, 5.0) ** 2) / (2 * deviation**2))
    kernel = (weights / weights.sum()).repeat(3, 1, 1, 1)
    wide = nn.functional.pad(pixels, (4, 4, 4, 4), mode="replicate")
    across = nn.functional.conv2d(wide, kernel, groups=3)
    return nn.functional.conv2d(across, kernel.transpose(2, 3), groups=3) + 0.04 * torch.randn_like(pixels)


def learnt(pixels, labels, classes, epochs, change):
    """A network that has learnt `labels` of `pixels`, as `change` makes them anew for each batch."""
    torch.manual_seed(1)
    model = Network(classes)
    steps = epochs * (len(pixels) // 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps + 1)
    for _ in range(epochs):
        order = torch.randperm(len(pixels))
        for first in range(0, len(pixels) - 63, 64):
            own = order[first : first + 64]
            told = model(change(pixels[own]))
            loss = sum(nn.functional.cross_entropy(told[name], labels[name][own]) for name in classes)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def drawings(janus, base, folder, held_out):
    """What the base draws for the captions of rows, with seeds from 0."""
    for index, row in enumerate(held_out):
        out = folder / f"{index}.png"
        command = [janus, "generate", "--base", base, row["caption"], "--out", str(out), "--seed", str(index)]
        subprocess.run(command, check=True, capture_output=True)
        yield Image.open(out).convert("RGB")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--janus", default="target/release/janus")
    parser.add_argument("--base", default="janus-nano")
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--train-rows", type=int, default=9000)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        picture = lambda row: Image.open(io.BytesIO(row["image"]["bytes"]))
        train = rows(arguments.janus, folder, "train", arguments.train_rows)
        held_out = rows(arguments.janus, folder, "eval", 2 * arguments.pictures)[: arguments.pictures]
        told = [attributes(row) for row in train]
        names = {name: sorted({one[name] for one in told}) for name in ("kind", "colour")}
        classes = {name: len(values) for name, values in names.items()}
        number = lambda rows, name: torch.tensor([names[name].index(attributes(row)[name]) for row in rows])
        pixels, labels = tensor([picture(row) for row in train]), {name: number(train, name) for name in names}
        real = tensor([picture(row) for row in held_out])
        drawn = tensor(list(drawings(arguments.janus, arguments.base, folder, held_out)))
        result = {"pictures": len(held_out), "chance": {name: 1 / count for name, count in classes.items()}}
        for trained_on, change in (("renders", lambda pixels: pixels), ("softened renders", softened)):
            model = learnt(pixels, labels, classes, arguments.epochs, change)

            def rates(pictures):
                told = model(pictures)
                right = {name: told[name].argmax(-1) == number(held_out, name) for name in names}
                right["both"] = right["kind"] & right["colour"]
                return {name: round(float(values.float().mean()), 3) for name, values in right.items()}

            with torch.no_grad():
                of_real, of_drawn = rates(real), rates(drawn)
            share = {name: round(of_drawn[name] / of_real[name], 3) for name in of_real}
            result[f"trained on {trained_on}"] = {"real": of_real, "drawn": of_drawn, "share": share}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
