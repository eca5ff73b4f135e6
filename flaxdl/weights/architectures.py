"""Detection of the architecture that weights belong to, for error messages."""

import re
from collections.abc import Mapping

_RESNETS: dict[tuple[bool, tuple[int, ...]], str] = {
    (False, (2, 2, 2, 2)): "18",
    (False, (3, 4, 6, 3)): "34",
    (True, (3, 4, 6, 3)): "50",
    (True, (3, 4, 23, 3)): "101",
    (True, (3, 8, 36, 3)): "152",
}
_VGGS = {8: "11", 10: "13", 13: "16", 16: "19"}
# Pattern in parameter names that only this architecture has → its name.
_OTHERS = {
    r"transformer\.layer\.\d+\.attention\.q_lin\.": "DistilBERT",
    r"encoder\.albert_layer_groups\.": "ALBERT",
    r"h\.\d+\.attn\.c_attn\.": "GPT-2",
    r"denseblock\d+\.denselayer\d+\.": "DenseNet",
    r"stages\.\d+\.blocks\.\d+\.conv_dw\.": "ConvNeXt",
    r"blocks\.\d+\.attn\.qkv\.": "a vision transformer",
    r"encoder\.layers\.encoder_layer_\d+\.": "a vision transformer",
}

Shapes = Mapping[str, tuple[int, ...]]


def detect_architecture(shapes: Shapes) -> str | None:
    """Returns the architecture of weights, such as `ResNet-50`, or None if it is unknown.

    Args:
        shapes: shape of each array, by PyTorch parameter name. The shape of the last layer does
            not matter.
    """
    return _resnet(shapes) or _vgg(shapes) or _bert(shapes) or _other(shapes)


def _resnet(shapes: Shapes) -> str | None:
    found = [
        re.search(r"(?:^|\.)layer([1-4])\.(\d{1,4})\.conv([123])\.weight$", key) for key in shapes
    ]
    blocks = [(int(match[1]), int(match[2]), match[3]) for match in found if match]
    if len({stage for stage, _, _ in blocks}) != 4:
        return None
    depths = tuple(1 + max(number for at, number, _ in blocks if at == i) for i in range(1, 5))
    is_bottleneck = any(conv == "3" for _, _, conv in blocks)
    depth = _RESNETS.get((is_bottleneck, depths))
    if depth is None:
        return f"a ResNet with {'-'.join(map(str, depths))} blocks"
    second = next((shapes[key] for key in shapes if key.endswith("layer1.0.conv2.weight")), ())
    width, inputs = (*second, 64, 64)[:2]
    kind = "ResNeXt" if inputs < width else "Wide ResNet" if width > 64 else "ResNet"
    return f"{kind}-{depth}"


def _vgg(shapes: Shapes) -> str | None:
    found = {key: re.search(r"(?:^|\.)features\.(\d+)\.weight$", key) for key in shapes}
    kernels = [shapes[key] for key, match in found.items() if match and len(shapes[key]) == 4]
    if not kernels:
        return None
    if len(kernels) == 5 and kernels[0][2:] == (11, 11):
        return "AlexNet"
    norm = " with batch norm" if len(kernels) < sum(map(bool, found.values())) else ""
    return f"VGG-{_VGGS[len(kernels)]}{norm}" if len(kernels) in _VGGS else None


def _bert(shapes: Shapes) -> str | None:
    end = "embeddings.word_embeddings.weight"
    key = next((key for key in shapes if key.endswith(end) and len(shapes[key]) == 2), None)
    layers = {match[1] for name in shapes if (match := re.search(r"encoder\.layer\.(\d+)\.", name))}
    if key is None or not layers:
        return None
    word = key.removesuffix(end).rstrip(".").rpartition(".")[2]
    family = {"roberta": "RoBERTa", "electra": "ELECTRA"}.get(word, "BERT")
    return f"{family} with {len(layers)} layers and hidden size {shapes[key][1]}"


def _other(shapes: Shapes) -> str | None:
    return next(
        (name for part, name in _OTHERS.items() if any(re.search(part, key) for key in shapes)),
        None,
    )
