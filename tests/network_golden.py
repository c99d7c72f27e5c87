"""Golden values of the networks that measure pictures: LPIPS over VGG-16 and AlexNet, and the Inception of the Fréchet distance.

The networks are those of the `lpips` and `pytorch-fid` packages with fewer channels and with weights from a formula, which
`janus-lora/src/eval/given/tests.rs` writes down again.

    python tests/network_golden.py

Made with lpips 0.1.4, pytorch-fid 0.3.0, torchvision 0.29.2, torch 2.15.0.
"""

import json
import math
import pathlib

import lpips
import torch
from pytorch_fid import inception
from torch import nn

FOLDER = pathlib.Path(__file__).parent / "golden" / "metrics"


def fill(module):
    """Fills a state by formula; returns names and shapes in order."""
    skipped = ("num_batches", "scaling", "lins.")
    state = {name: value for name, value in module.state_dict().items() if not any(part in name for part in skipped)}
    listed = []
    for number, name in enumerate(sorted(state)):
        shape = list(state[name].shape)
        waves = torch.sin(1.3 * torch.arange(state[name].numel(), dtype=torch.float64) + 0.7 * number)
        if name.endswith("running_var"):
            values = 0.5 + 0.4 * waves.abs()
        elif name.endswith("bn.weight") or name.startswith("lin"):
            values = 1 + 0.2 * waves
        elif len(shape) == 1:
            values = 0.1 * waves
        else:
            values = 1.5 * waves / math.sqrt(math.prod(shape[1:]))
        state[name].copy_(values.reshape(shape))
        listed.append([name, shape])
    return listed


def picture(phase, height, width):
    """Pixels from 0 to 255, `[1, 3, height, width]`."""
    place = torch.arange(height * width * 3, dtype=torch.float64)
    values = torch.floor(127.5 + 127.4 * torch.sin(0.05 * phase * place + phase)).reshape(height, width, 3)
    return values.permute(2, 0, 1)[None].float()


def narrow(convolution, inputs, outputs):
    return nn.Conv2d(
        inputs,
        outputs,
        convolution.kernel_size,
        convolution.stride,
        convolution.padding,
        bias=convolution.bias is not None,
    )


def narrow_lpips(kind, share):
    network = lpips.LPIPS(net=kind, pretrained=False, pnet_rand=True, verbose=False).eval()
    inputs = 3
    for number in range(5):
        part = getattr(network.net, f"slice{number + 1}")
        for name, layer in part.named_children():
            if isinstance(layer, nn.Conv2d):
                outputs = layer.out_channels // share
                setattr(part, name, narrow(layer, inputs, outputs))
                inputs = outputs
        for lin in (getattr(network, f"lin{number}"), network.lins[number]):
            lin.model[1] = nn.Conv2d(inputs, 1, 1, bias=False)
    return network


def narrow_inception(share):
    network = inception._inception_v3(num_classes=8, aux_logits=False, weights=None)
    blocks = {
        "Mixed_5b": inception.FIDInceptionA(192, pool_features=32),
        "Mixed_5c": inception.FIDInceptionA(256, pool_features=64),
        "Mixed_5d": inception.FIDInceptionA(288, pool_features=64),
        "Mixed_6b": inception.FIDInceptionC(768, channels_7x7=128),
        "Mixed_6c": inception.FIDInceptionC(768, channels_7x7=160),
        "Mixed_6d": inception.FIDInceptionC(768, channels_7x7=160),
        "Mixed_6e": inception.FIDInceptionC(768, channels_7x7=192),
        "Mixed_7b": inception.FIDInceptionE_1(1280),
        "Mixed_7c": inception.FIDInceptionE_2(2048),
    }
    for name, block in blocks.items():
        setattr(network, name, block)
    for module in network.modules():
        if hasattr(module, "conv") and hasattr(module, "bn"):
            inputs = module.conv.in_channels
            outputs = module.conv.out_channels // share
            module.conv = narrow(module.conv, inputs if inputs == 3 else inputs // share, outputs)
            module.bn = nn.BatchNorm2d(outputs, eps=0.001)
    del network.fc
    original = inception.fid_inception_v3
    inception.fid_inception_v3 = lambda: network
    wrapped = inception.InceptionV3([3]).eval()
    inception.fid_inception_v3 = original
    return network.eval(), wrapped


def main():
    torch.set_num_threads(1)
    golden = {}
    with torch.no_grad():
        one, other = picture(1, 48, 57), picture(2, 48, 57)
        for kind in ("vgg", "alex"):
            network = narrow_lpips(kind, 16)
            tensors = fill(network)
            for lin, twin in zip((network.lin0, network.lin1, network.lin2, network.lin3, network.lin4), network.lins):
                twin.load_state_dict(lin.state_dict())
            value = network(one / 127.5 - 1, other / 127.5 - 1).item()
            golden[kind] = {"tensors": tensors, "distance": value}
            if kind == "alex":
                torch.save(network.state_dict(), FOLDER / "lpips-alex.pth")
        network, wrapped = narrow_inception(16)
        tensors = fill(network)
        golden["inception"] = {"tensors": tensors, "features": wrapped(picture(3, 20, 26) / 255)[0].flatten().tolist()}
    (FOLDER / "networks.json").write_text(json.dumps(golden, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
