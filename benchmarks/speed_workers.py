"""The processes of `speed.py`: each holds one side of one row, and measures when it is told to.

    python benchmarks/speed_workers.py {ours,eager,compiled} ROW FOLDER [--gpu]

It reads commands from its standard input and answers each with a line of JSON.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from speed_rows import ROWS, Row

WEIGHTS = "weights.safetensors"  # what all sides of a row start from
LEARNING_RATE = 1e-3  # in the measured steps


class Ours:
    """flaxdl's training step and inference, compiled by XLA."""

    def __init__(self, row: Row, folder: Path, gpu: bool):
        import jax

        from flaxdl.allocation import keep_freed_memory
        from flaxdl.training import SGD, AdamW

        if not gpu:
            keep_freed_memory()  # as a run does
        self.row, self.folder = row, folder
        self.precision = "bfloat16" if gpu else "float32"
        self.batch = jax.device_put(row.batch(row.gpu_batch if gpu else None))
        self.optimizer = (
            SGD(learning_rate=LEARNING_RATE, weight_decay=1e-4)
            if row.optimizer == "sgd"
            else AdamW(learning_rate=LEARNING_RATE)
        )

    def _steps(self, dropout: float, optimizer: Any) -> Any:
        from flaxdl.training import Classification, Steps

        return Steps(
            model=self.row.ours(dropout),
            task=Classification(),
            optimizer=optimizer,
            total_steps=1000,
            precision=self.precision,
        )

    def _state(self, steps: Any) -> Any:
        import jax

        from flaxdl.weights import load_weights

        state = jax.jit(lambda: steps.initial_state(self.batch))()
        variables = {"params": state.params, **state.model_state}
        loaded = jax.tree.map(jax.numpy.array, load_weights(variables, self.folder / WEIGHTS))
        return state.replace(params=loaded.pop("params"), model_state=loaded)

    def check(self) -> dict[str, float]:
        """Writes logits and gradients without dropout."""
        import jax
        from safetensors.numpy import save_file

        from flaxdl.training import Classification
        from flaxdl.training.precision import to_compute_dtype
        from flaxdl.weights import state_dict

        steps = self._steps(0.0, self.optimizer)
        state = self._state(steps)

        def loss(params: Any) -> jax.Array:
            variables = to_compute_dtype({"params": params}, self.precision) | state.model_state
            inputs = to_compute_dtype(self.batch["inputs"], self.precision)
            mutable = list(state.model_state)
            logits, _ = steps.model.apply(variables, inputs, train=True, mutable=mutable)
            return Classification().loss(logits, self.batch)

        logits = jax.jit(steps.predict)(state, self.batch)
        value, gradients = jax.jit(jax.value_and_grad(loss))(state.params)
        arrays = {k: np.ascontiguousarray(v) for k, v in state_dict({"params": gradients}).items()}
        arrays["logits"] = np.asarray(logits, np.float32)
        save_file(arrays, self.folder / "ours.safetensors")
        return {"loss": float(value)}

    def train(self) -> Callable[[int], None]:
        """Returns a function that takes so many training steps."""
        import jax

        steps = self._steps(self.row.dropout, self.optimizer)
        step = jax.jit(steps.train, donate_argnums=0)
        self.state = self._state(steps)

        def run(count: int) -> None:
            for _ in range(count):
                self.state = step(self.state, self.batch)
            jax.block_until_ready(self.state)

        return run

    def infer(self) -> Callable[[int], None]:
        """Returns a function that computes logits so many times."""
        import jax

        steps = self._steps(self.row.dropout, self.optimizer)
        state = self._state(steps)
        predict = jax.jit(steps.predict)

        def run(count: int) -> None:
            for _ in range(count):
                logits = predict(state, self.batch)
            jax.block_until_ready(logits)

        return run

    def matrix_rate(self) -> float:
        """FLOPs a second of a large matrix product in the precision of the steps."""
        import jax
        import jax.numpy as jnp

        size, dtype = (8192, jnp.bfloat16) if self.precision == "bfloat16" else (2048, jnp.float32)
        matrix = jnp.ones((size, size), dtype)
        product = jax.jit(lambda a: jax.lax.fori_loop(0, 4, lambda _, b: a @ b, a))
        jax.block_until_ready(product(matrix))
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            jax.block_until_ready(product(matrix))
            seconds.append(time.perf_counter() - start)
        return 4 * 2 * size**3 / min(seconds)

    def facts(self) -> dict[str, Any]:
        """What it runs on, and the multiply-adds of a forward pass as FLOPs."""
        import flax
        import jax
        import jaxlib

        from flaxdl.report.inspect import inspect

        inputs = self.batch["inputs"]
        rows = inspect(self.row.ours(0.0), jax.ShapeDtypeStruct(inputs.shape, inputs.dtype))
        return {
            "versions": {
                "jax": jax.__version__,
                "jaxlib": jaxlib.__version__,
                "flax": flax.__version__,
            },
            "device": jax.devices()[0].device_kind,
            "forward_flops": sum(layer.flops for layer in rows),
            "examples": len(inputs),
        }


class PyTorch:
    """The same in PyTorch, eager or compiled; images are channels last."""

    def __init__(self, row: Row, folder: Path, gpu: bool, compiled: bool):
        import torch

        self.row, self.folder, self.gpu, self.compiled = row, folder, gpu, compiled
        self.device = torch.device("cuda" if gpu else "cpu")
        batch = row.batch(row.gpu_batch if gpu else None)
        inputs = torch.tensor(batch["inputs"], device=self.device)
        if row.is_image:  # a view of channels first, in memory channels last
            inputs = inputs.permute(0, 3, 1, 2)
        elif row.vocabulary is not None:
            inputs = inputs.long()
        self.inputs = inputs
        self.labels = torch.tensor(batch["label"], device=self.device).long()

    def _network(self, dropout: float) -> Any:
        import torch
        from safetensors.torch import load_file, save_file

        torch.manual_seed(0)
        network = self.row.pytorch(dropout)
        path = self.folder / WEIGHTS
        if path.exists():
            arrays = load_file(path)
            with torch.no_grad():
                for name, array in network.state_dict().items():
                    array.copy_(arrays[name])
        else:
            state = {name: array.contiguous() for name, array in network.state_dict().items()}
            save_file({name: array.clone() for name, array in state.items()}, path)
        network = network.to(self.device)
        return network.to(memory_format=torch.channels_last) if self.row.is_image else network

    def _loss(self, network: Any) -> Any:
        import torch

        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.gpu):
            logits = network(self.inputs)
        return torch.nn.functional.cross_entropy(logits.float(), self.labels)

    def check(self) -> dict[str, float]:
        """Writes logits and gradients without dropout, in the row's precision and in float64."""
        import torch

        loss = self._write("pytorch", torch.float32, autocast=self.gpu)
        self._write("exact", torch.float64, autocast=False)
        return {"loss": loss}

    def _write(self, name: str, dtype: Any, *, autocast: bool) -> float:
        import torch
        from safetensors.torch import save_file

        network = self._network(0.0).to(dtype).eval()
        inputs = self.inputs.to(dtype) if self.row.vocabulary is None else self.inputs
        in_bfloat16 = torch.autocast(self.device.type, torch.bfloat16, enabled=autocast)
        with torch.no_grad(), in_bfloat16:
            logits = network(inputs)
        network.train()
        with in_bfloat16:
            outputs = network(inputs)
        loss = torch.nn.functional.cross_entropy(outputs.to(dtype), self.labels)
        loss.backward()
        arrays = {
            name.removeprefix("model."): parameter.grad.cpu().contiguous()
            for name, parameter in network.named_parameters()
        }
        arrays["logits"] = logits.to(dtype).cpu()
        save_file(arrays, self.folder / f"{name}.safetensors")
        return loss.item()

    def train(self) -> Callable[[int], None]:
        """Returns a function that takes so many training steps."""
        import torch

        network = self._network(self.row.dropout).train()
        parameters = list(network.parameters())
        if self.row.optimizer == "sgd":
            optimizer = torch.optim.SGD(
                parameters, LEARNING_RATE, momentum=0.9, weight_decay=1e-4, fused=True
            )
        else:
            optimizer = torch.optim.AdamW(parameters, LEARNING_RATE, fused=True)
        forward = torch.compile(network) if self.compiled else network

        def run(count: int) -> None:
            for _ in range(count):
                optimizer.zero_grad(set_to_none=True)
                self._loss(forward).backward()
                optimizer.step()
            self._wait()

        return run

    def infer(self) -> Callable[[int], None]:
        """Returns a function that computes logits so many times."""
        import torch

        network = self._network(self.row.dropout).eval()
        forward = torch.compile(network) if self.compiled else network

        def run(count: int) -> None:
            autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.gpu)
            with torch.inference_mode(), autocast:
                for _ in range(count):
                    forward(self.inputs)
            self._wait()

        return run

    def _wait(self) -> None:
        import torch

        if self.gpu:
            torch.cuda.synchronize()

    def facts(self) -> dict[str, Any]:
        """What it runs on."""
        import torch

        return {"versions": {"torch": torch.__version__}, "threads": torch.get_num_threads()}


def main() -> None:
    """Answers commands until its input ends."""
    contender, name, folder, *flags = sys.argv[1:]
    row, gpu = ROWS[name], "--gpu" in flags
    side = (
        Ours(row, Path(folder), gpu)
        if contender == "ours"
        else PyTorch(row, Path(folder), gpu, compiled=contender == "compiled")
    )
    runs: dict[str, Callable[[int], None]] = {}
    for line in sys.stdin:
        command, *arguments = line.split()
        if command in ("train", "infer"):
            answer: Any = measure(side, runs, command, seconds=float(arguments[0]))
        else:
            answer = getattr(side, command)()
        print(json.dumps(answer), flush=True)


def measure(
    side: Any, runs: dict[str, Callable[[int], None]], mode: str, *, seconds: float
) -> dict[str, float]:
    """Milliseconds of a step, over so many seconds; the first call prepares and only tells that."""
    if mode not in runs:
        start = time.perf_counter()
        runs[mode] = getattr(side, mode)()
        prepared = time.perf_counter()
        runs[mode](1)
        first = time.perf_counter()
        runs[mode](2)
        return {"prepare_s": prepared - start, "first_step_s": first - prepared}
    start = time.perf_counter()
    runs[mode](1)
    count = max(1, round(seconds / (time.perf_counter() - start)) - 1)
    start = time.perf_counter()
    runs[mode](count)
    return {"ms": 1000 * (time.perf_counter() - start) / count}


if __name__ == "__main__":
    main()
