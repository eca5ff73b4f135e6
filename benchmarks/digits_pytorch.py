"""`configs/digits_cnn.py` in PyTorch: the same data, augmentation, network and training.

    python benchmarks/digits_pytorch.py DATA.npz

DATA.npz has the arrays `train_inputs` uint8[N, 8, 8, 1], `train_label`, `validation_...` and
`test_...`. They are kept as tensors and augmented batch by batch. Prints a line of JSON.
"""

import time

START = time.perf_counter()

import json  # noqa: E402
import math  # noqa: E402
import sys  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
from pytorch_networks import simple_cnn  # noqa: E402
from torch.nn import functional  # noqa: E402

IMPORTED = time.perf_counter()
BATCH, EPOCHS, EVALUATE_EVERY, MEAN, STD = 128, 200, 20, 0.305, 0.376


def augmented(images: torch.Tensor) -> torch.Tensor:
    """Rotates images [B, 1, 8, 8] by up to 10 degrees and shifts them by up to one pixel."""
    count = len(images)
    angles = torch.deg2rad(torch.empty(count).uniform_(-10, 10))
    moves = torch.randint(-1, 2, (2, count)) * (2 / 8)
    cosine, sine = angles.cos(), angles.sin()
    theta = torch.stack([cosine, -sine, moves[0], sine, cosine, moves[1]], 1).view(-1, 2, 3)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


def main(path: str) -> dict[str, float]:
    """Trains, and evaluates the checkpoint with the best validation loss on the test split."""
    with np.load(path) as arrays:
        data = {name: torch.tensor(arrays[name]) for name in arrays}
    for name, tensor in data.items():
        is_image = name.endswith("inputs")
        data[name] = tensor.permute(0, 3, 1, 2).float() / 255 if is_image else tensor.long()
    network = simple_cnn(1, dropout=0.5).to(memory_format=torch.channels_last)
    steps_per_epoch = len(data["train_label"]) // BATCH
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * steps_per_epoch)

    def score(split: str) -> tuple[float, float]:
        network.eval()
        with torch.inference_mode():
            logits = network((data[f"{split}_inputs"] - MEAN) / STD)
        network.train()
        label = data[f"{split}_label"]
        right = (logits.argmax(1) == label).float().mean().item()
        return functional.cross_entropy(logits, label).item(), right

    best, kept, evaluating, first_step = math.inf, {}, 0.0, 0.0
    for epoch in range(1, EPOCHS + 1):
        order = torch.randperm(len(data["train_label"]))
        for step in range(steps_per_epoch):
            chosen = order[step * BATCH : (step + 1) * BATCH]
            inputs = (augmented(data["train_inputs"][chosen]) - MEAN) / STD
            logits = network(inputs.contiguous(memory_format=torch.channels_last))
            loss = functional.cross_entropy(
                logits, data["train_label"][chosen], label_smoothing=0.1
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            first_step = first_step or time.perf_counter() - START
        if epoch % EVALUATE_EVERY == 0:
            start = time.perf_counter()
            loss, _ = score("validation")
            evaluating += time.perf_counter() - start
            if loss < best:
                best = loss
                kept = {name: array.clone() for name, array in network.state_dict().items()}
    network.load_state_dict(kept)
    return {
        "import_s": IMPORTED - START,
        "first_step_s": first_step,
        "evaluate_s": evaluating,
        "accuracy": score("test")[1],
        "total_s": time.perf_counter() - START,
    }


if __name__ == "__main__":
    torch.manual_seed(0)
    print(json.dumps(main(sys.argv[1])))
