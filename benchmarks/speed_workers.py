"""Processes of `speed.py`: each prepares one side of one row and measures on command.

    python benchmarks/speed_workers.py {ours,eager,eager_keeping,compiled} ROW FOLDER [--gpu]

A worker reads commands from standard input and responds to each with a line of JSON. `prepare`
compiles and keeps little in GPU memory, so that several rows can be prepared at the same time.
"""

import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from speed_rows import ROWS, Row

WEIGHTS = "weights.safetensors"  # the initial weights of all sides of a row
LEARNING_RATE = 1e-3  # of the measured steps


class Ours:
    """flaxdl's training step and inference, compiled by XLA."""

    def __init__(self, row: Row, folder: Path, gpu: bool):
        from flaxdl.backend.malloc import keep_freed_memory, synchronous_dispatch
        from flaxdl.training import SGD, AdamW

        if not gpu:  # as a run does
            self.settings = ExitStack()
            self.settings.enter_context(synchronous_dispatch())
            self.settings.enter_context(keep_freed_memory())
        self.row, self.folder, self.gpu = row, folder, gpu
        self.precision = "bfloat16" if gpu else "float32"
        self.batch = row.batch(row.gpu_batch if gpu else None)
        self.optimizer = (
            SGD(learning_rate=LEARNING_RATE, weight_decay=1e-4)
            if row.optimizer == "sgd"
            else AdamW(learning_rate=LEARNING_RATE)
        )

    def _steps(self, dropout: float) -> Any:
        from flaxdl.training import Classification, Steps

        return Steps(
            model=self.row.ours(dropout),
            task=Classification(),
            optimizer=self.optimizer,
            total_steps=1000,
            precision=self.precision,
        )

    def _shapes(self, steps: Any) -> Any:
        import jax

        return jax.eval_shape(steps.initial_state, self.batch)

    def _state(self, steps: Any) -> Any:
        import jax

        from flaxdl.weights import load_weights

        state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), self._shapes(steps))
        variables = {"params": state.params, **state.model_state}
        loaded = dict(load_weights(variables, self.folder / WEIGHTS))
        return jax.tree.map(
            jax.numpy.array, state.replace(params=loaded.pop("params"), model_state=loaded)
        )

    def check(self) -> dict[str, float]:
        """Writes logits and gradients computed without dropout."""
        import jax
        from safetensors.numpy import save_file

        from flaxdl.training import Classification
        from flaxdl.training.precision import to_compute_dtype
        from flaxdl.weights import state_dict

        steps, batch = self._steps(0.0), self.row.batch()
        state = self._state(steps)

        def loss(params: Any) -> jax.Array:
            variables = to_compute_dtype({"params": params}, self.precision) | state.model_state
            inputs = to_compute_dtype(batch["inputs"], self.precision)
            mutable = list(state.model_state)
            logits, _ = steps.model.apply(variables, inputs, train=True, mutable=mutable)
            return Classification().loss(logits, batch)

        # Used once, so autotuning does not pay off.
        options = {"xla_gpu_autotune_level": 0} if self.gpu else None
        logits = jax.jit(steps.predict, compiler_options=options)(state, batch)
        value, gradients = jax.jit(jax.value_and_grad(loss), compiler_options=options)(state.params)
        arrays = {k: np.ascontiguousarray(v) for k, v in state_dict({"params": gradients}).items()}
        arrays["logits"] = np.asarray(logits, np.float32)
        save_file(arrays, self.folder / "ours.safetensors")
        return {"loss": float(value)}

    def prepare(self, mode: str) -> Callable[[int], None]:
        """Compiles the step of a mode, and returns a function that runs a number of them."""
        import jax

        steps, is_training = self._steps(self.row.dropout), mode == "train"
        function = jax.jit(steps.train, donate_argnums=0) if is_training else jax.jit(steps.predict)
        step = function.lower(self._shapes(steps), self.batch).compile()
        kept: dict[str, Any] = {}

        def run(count: int) -> None:
            if not kept:  # lazily, since other rows need the memory for compiling
                kept.update(state=self._state(steps), batch=jax.device_put(self.batch))
            for _ in range(count):
                result = step(kept["state"], kept["batch"])
                if is_training:
                    kept["state"] = result
            jax.block_until_ready(result)

        return run

    def rest(self) -> None:
        """Does nothing, since JAX does not release its memory."""

    def matrix_rate(self) -> float:
        """Measures the FLOPs per second of a large matrix product in the precision of the steps."""
        import jax
        import jax.numpy as jnp

        size, dtype = (8192, jnp.bfloat16) if self.precision == "bfloat16" else (2048, jnp.float32)
        matrix = jax.random.normal(jax.random.key(0), (size, size), dtype) / size**0.5
        product = jax.jit(lambda a: jax.lax.fori_loop(0, 4, lambda _, b: a @ b, a))
        jax.block_until_ready(product(matrix))
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            jax.block_until_ready(product(matrix))
            seconds.append(time.perf_counter() - start)
        return 4 * 2 * size**3 / min(seconds)

    def facts(self) -> dict[str, Any]:
        """Returns versions, device, precision and the FLOPs of a forward pass."""
        import flax
        import jax
        import jaxlib

        from flaxdl.analysis.layers import inspect

        inputs = self.batch["inputs"]
        rows = inspect(self.row.ours(0.0), jax.ShapeDtypeStruct(inputs.shape, inputs.dtype))
        return {
            "versions": {
                "jax": jax.__version__,
                "jaxlib": jaxlib.__version__,
                "flax": flax.__version__,
            },
            "device": jax.devices()[0].device_kind,
            "precision": self.precision,
            "forward_flops": sum(layer.flops for layer in rows),
            "examples": len(inputs),
        }


class PyTorch:
    """PyTorch's training step and inference, eager or compiled; images are channels last."""

    def __init__(self, row: Row, folder: Path, gpu: bool, compiled: bool):
        import torch

        self.row, self.folder, self.gpu, self.compiled = row, folder, gpu, compiled
        self.device = torch.device("cuda" if gpu else "cpu")
        self.inputs, self.labels = self._batch(row.gpu_batch if gpu else None)

    def _batch(self, size: int | None) -> tuple[Any, Any]:
        import torch

        batch = self.row.batch(size)
        inputs = torch.tensor(batch["inputs"], device=self.device)
        if self.row.is_image:  # shape [B, C, H, W], channels-last memory format
            inputs = inputs.permute(0, 3, 1, 2)
        elif self.row.vocabulary is not None:
            inputs = inputs.long()
        return inputs, torch.tensor(batch["label"], device=self.device).long()

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
        inputs, labels = self._batch(None)
        inputs = inputs.to(dtype) if self.row.vocabulary is None else inputs
        in_bfloat16 = torch.autocast(self.device.type, torch.bfloat16, enabled=autocast)
        with torch.no_grad(), in_bfloat16:
            logits = network(inputs)
        network.train()
        with in_bfloat16:
            outputs = network(inputs)
        loss = torch.nn.functional.cross_entropy(outputs.to(dtype), labels)
        loss.backward()
        arrays = {
            name.removeprefix("model."): parameter.grad.cpu().contiguous()
            for name, parameter in network.named_parameters()
        }
        arrays["logits"] = logits.to(dtype).cpu()
        save_file(arrays, self.folder / f"{name}.safetensors")
        return loss.item()

    def train(self) -> Callable[[int], None]:
        """Returns a function that runs a number of training steps."""
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
        """Returns a function that runs inference a number of times."""
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

    def prepare(self, mode: str) -> Callable[[int], None]:
        """Returns the function of a mode, after a first step if it is to be compiled."""
        import torch

        run = getattr(self, mode)()
        if self.compiled:
            torch.backends.cudnn.benchmark = False  # other processes use the GPU now
            run(1)
        torch.backends.cudnn.benchmark = True  # cuDNN autotunes in the next step
        return run

    def rest(self) -> None:
        """Releases cached GPU memory for the other sides."""
        import torch

        if self.gpu:
            torch.cuda.empty_cache()

    def _wait(self) -> None:
        import torch

        if self.gpu:
            torch.cuda.synchronize()

    def facts(self) -> dict[str, Any]:
        """Returns version and number of threads."""
        import torch

        return {"versions": {"torch": torch.__version__}, "threads": torch.get_num_threads()}


def main() -> None:
    """Executes commands until the end of standard input."""
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
        if command == "prepare":
            (mode,) = arguments
            start = time.perf_counter()
            runs[mode] = side.prepare(mode)
            answer: Any = {"compile_s": time.perf_counter() - start}
        elif command in runs:
            answer = measure(runs[command], seconds=float(arguments[0]))
        else:
            answer = getattr(side, command)()
        side.rest()
        print(json.dumps(answer), flush=True)


def measure(run: Callable[[int], None], *, seconds: float) -> dict[str, float]:
    """Milliseconds of a step, measured for about `seconds`, after one step to warm up."""
    run(1)
    start = time.perf_counter()
    run(1)
    count = max(1, round(seconds / (time.perf_counter() - start)))
    if count > 1:
        run(count - 1)
    return {"ms": 1000 * (time.perf_counter() - start) / count}


if __name__ == "__main__":
    main()
