"""Training tokens a second: Ray Train + DeepSpeed against a bare PyTorch loop, same model and machine, taking turns.

    python benchmarks/train_throughput.py [--sizes 330k 780k] [--steps 12] [--pairs 5] [--out FILE.json]
    python benchmarks/train_throughput.py --device cuda --sizes 125m 350m 1b --sequence-length 2048 --rows 32 \\
        --rows-per-microbatch 16 --vocab-size 32768 --precision bf16 --compile [--no-ray] [--variants plain masked ...]

`ours` is a run in a warm lane, as `pretrain_models` trains it; the speed is that of its record, which leaves evaluation
out. `bare` is a plain loop in a process of its own: the same module and rows, torch's AdamW, clipping, the same number of
steps from fresh weights, no Ray and no DeepSpeed. The turns alternate; `ratio` is the median over pairs of ours / bare,
the target 0.95 on a CPU. Variants of the bare loop tell what a choice is worth: `plain` is what most people would write
(transformers' own loss over all logits, no document mask), `all_logits` has the mask and a loss over all logits, `eager`
spells attention out, `masked` attends by a mask over all pairs where `bare` need not, `recompute` keeps only each layer's
input, `compiled` compiles the layers. With `--compile` ours and `bare` compile theirs and `uncompiled` does not. Compiling is
not counted: the first turn of each side is left out.
Model FLOPs utilisation counts every matrix product (`train.flops.train_flops`) against the device's peak; a CPU has no
known one. The target is 0.50 for 1b in bf16 on one H200. With `--no-ray` ours is `train.loop.train_run` in the bare
loop's process, for a machine that Ray cannot be brought to.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.result import give, machine, parser_of, versions
from tests.assets.packed_set import write_packed_set
from train.devices import device_name, peak_flops
from train.flops import count_parameters, train_flops
from train.placement import TrainPlacement
from train.record import RunRecord, run_directory
from train.run import RunConfig
from train.sizes import model_of
from train.tokens import PackedSet

SETTINGS = ("rows", "rows_per_microbatch", "steps", "precision", "device", "threads", "compile")
VARIANTS = ("plain", "all_logits", "eager", "masked", "recompute", "compiled", "uncompiled")


def make_run(packed: PackedSet, size: str, options: argparse.Namespace, seed: int) -> RunConfig:
    """Return a run of so many steps; the seed makes it a new one."""
    return RunConfig(
        packed="tiny",
        packed_hash=packed.hash,
        model=model_of(size),
        mixture={"natural": 0.5, "synthetic": 0.5},
        train_tokens=options.steps * options.rows * packed.sequence_length,
        rows_per_step=options.rows,
        sequence_length=packed.sequence_length,
        precision=options.precision,
        max_epochs=None,
        seed=seed,
    )


def placement_of(options: argparse.Namespace) -> TrainPlacement:
    """Return one worker with the whole machine, as the bare loop has it."""
    on_gpu = options.device == "cuda"
    return TrainPlacement(
        cpus_per_worker=options.threads,
        gpus_per_worker=1.0 if on_gpu else 0.0,
        threads_per_worker=options.threads,
        rows_per_microbatch=options.rows_per_microbatch,
        zero_stage=1,
        compile_layers=options.compile,
    )


# --- ours ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def warm_lane(root: str, options: argparse.Namespace) -> Iterator[Callable[[RunConfig], RunRecord]]:
    """Yield what trains a run in a warm lane of Ray Train."""
    import ray

    from train.lanes.job import Lanes

    ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        with Lanes(root, placement_of(options)) as lanes:
            yield lambda run: ray.get(lanes.submit(run))
    finally:
        ray.shutdown()


# --- the bare loop, in a process of its own --------------------------------------------------------------------


class Bare:
    """A process that trains by a plain loop whenever it is asked, and is idle in between."""

    def __init__(self, root: str, options: argparse.Namespace) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, root, vars(options)), daemon=True)
        self._process.start()

    def train(self, run: RunConfig, how: str) -> float:
        """Return tokens per second of a run trained `bare`, `plain` or, without Ray, by `ours`."""
        self._pipe.send((run, how))
        answer = self._pipe.recv()
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return float(answer)

    def close(self) -> None:
        self._pipe.send(None)
        self._process.join(timeout=30)


def _serve(pipe: Any, root: str, options: dict[str, Any]) -> None:
    import torch

    os.environ.setdefault("DS_ACCELERATOR", options["device"])
    torch.set_num_threads(options["threads"])
    packed = PackedSet.open(root, "tiny")
    while (asked := pipe.recv()) is not None:
        run, how = asked
        try:
            pipe.send(
                _ours_without_ray(run, packed, root, options)
                if how == "ours"
                else _loop(run, packed, how, options)
            )
        except Exception as error:  # the other end prints it
            pipe.send(f"{how}: {type(error).__name__}: {error}")


def _ours_without_ray(run: RunConfig, packed: PackedSet, root: str, options: dict[str, Any]) -> float:
    from train.loop import train_run

    placement = placement_of(argparse.Namespace(**options))
    record = train_run(run, packed, placement, run_directory(root, run.run_id), device=options["device"])
    return record.tokens_per_second


def _loop(run: RunConfig, packed: PackedSet, how: str, options: dict[str, Any]) -> float:
    """Train a run from fresh weights by a plain loop; return tokens per second."""
    import torch

    from train.attention import choose_attention
    from train.mixture import MixtureSampler
    from train.model import Pretrainer, Vocabulary, build_llama, compile_layers

    device = torch.device(options["device"])
    vocabulary = Vocabulary(packed.vocab_size, packed.eot_id)
    llama = build_llama(run.model, vocabulary, run.sequence_length, run.seed).to(device)
    module: Any = Pretrainer(llama, vocabulary.end_of_text)
    if how not in ("plain", "eager", "masked"):
        choose_attention(llama, device, run.precision)
    if how == "compiled" or (options["compile"] and how == "bare"):
        compile_layers(llama)
    forward = _forward(how, llama, module)
    in_bf16 = run.precision == "bf16"
    masters = (
        [parameter.detach().clone() for parameter in module.parameters()]
        if in_bf16
        else list(module.parameters())
    )
    if in_bf16:
        module.bfloat16()
        masters = [torch.nn.Parameter(master) for master in masters]
    settings = run.optimizer
    optimizer = torch.optim.AdamW(
        [
            {"params": [each for each in masters if each.ndim >= 2], "weight_decay": settings.weight_decay},
            {"params": [each for each in masters if each.ndim < 2], "weight_decay": 0.0},
        ],
        lr=1e-3, betas=(settings.beta1, settings.beta2), fused=device.type == "cuda",
    )  # fmt: skip
    sampler = MixtureSampler(run.mixture, packed.info.num_rows, run.seed)
    num_parts = run.rows_per_step // min(options["rows_per_microbatch"], run.rows_per_step)
    began = time.perf_counter()
    for step in range(run.num_steps):
        slots = sampler.slots(step * run.rows_per_step, (step + 1) * run.rows_per_step)
        rows = torch.from_numpy(packed.gather(sampler.names, *slots).astype("int64")).to(device)
        for part in rows.chunk(num_parts):
            (forward(part) / num_parts).backward()
        if in_bf16:
            for master, parameter in zip(masters, module.parameters(), strict=True):
                master.grad, parameter.grad = parameter.grad.float(), None
        torch.nn.utils.clip_grad_norm_(masters, settings.max_gradient_norm)
        optimizer.step()
        optimizer.zero_grad()
        if in_bf16:
            with torch.no_grad():
                torch._foreach_copy_(list(module.parameters()), masters)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return run.num_steps * run.tokens_per_step / (time.perf_counter() - began)


def _forward(how: str, llama: Any, module: Any) -> Callable[[Any], Any]:
    """Return what gives the loss of rows of T + 1 tokens in one variant of the loop."""
    import torch

    def all_logits(rows: Any) -> Any:
        logits = module.logits(rows[:, :-1])
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten())

    if how == "plain":
        return lambda rows: llama(rows, labels=rows).loss  # reads T + 1 tokens and predicts the last T
    if how == "all_logits":
        return all_logits
    if how == "eager":
        llama.config._attn_implementation = "eager"
    if how == "recompute":
        llama.gradient_checkpointing_enable({"use_reentrant": False})
    return lambda rows: module(rows)[0]


# --- measuring -------------------------------------------------------------------------------------------------


def measure_size(
    size: str,
    packed: PackedSet,
    options: argparse.Namespace,
    ours: Callable[[RunConfig], RunRecord] | None,
    bare: Bare,
) -> dict[str, Any]:
    """Return the speeds of one size, taking turns; a first turn of each is not counted."""
    sides = ("ours", "bare", *options.variants)
    speeds: dict[str, list[float]] = {how: [] for how in sides}
    for pair in range(options.pairs + 1):
        run = make_run(packed, size, options, seed=pair)
        for how in sides if pair % 2 else reversed(sides):
            if how == "ours" and ours is not None:
                record = ours(run)
                assert record.status == "complete", record.reason
                speed = record.tokens_per_second
            else:
                speed = bare.train(run, how)
            if pair:
                speeds[how].append(speed)
    shape = model_of(size)
    flops = train_flops(shape, packed.vocab_size, packed.sequence_length, 1)
    import torch

    name = device_name(torch.device(options.device))
    peak = peak_flops(name, options.precision, placement_of(options))
    median = {how: statistics.median(each) for how, each in speeds.items()}
    return {
        "size": size,
        "num_params_non_embedding": count_parameters(shape, packed.vocab_size).non_embedding,
        "tokens_per_second": {how: round(speed, 1) for how, speed in median.items()},
        "flops_per_second": {how: flops * speed for how, speed in median.items()},
        "mfu_fraction": {how: flops * speed / peak for how, speed in median.items()} if peak else None,
        "ratio": statistics.median(a / b for a, b in zip(speeds["ours"], speeds["bare"], strict=True)),
        "variants_to_bare": {
            how: statistics.median(a / b for a, b in zip(speeds[how], speeds["bare"], strict=True))
            for how in options.variants
        },
        "ratios": [a / b for a, b in zip(speeds["ours"], speeds["bare"], strict=True)],
        "device": name,
        "peak_flops_per_second": peak,
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return the speeds of every size, with machine and versions."""
    with tempfile.TemporaryDirectory() as root, contextlib.ExitStack() as stack:
        packed = write_packed_set(
            root, sources={"natural": 96, "synthetic": 96}, sequence_length=options.sequence_length,
            vocab_size=options.vocab_size, document_length=options.sequence_length // 3,
        )  # fmt: skip
        bare = Bare(root, options)
        stack.callback(bare.close)
        ours = None if options.no_ray else stack.enter_context(warm_lane(root, options))
        results = [measure_size(size, packed, options, ours, bare) for size in options.sizes]
    return {
        "sequence_length": options.sequence_length,
        "vocab_size": options.vocab_size,
        **{name: getattr(options, name) for name in SETTINGS},
        "pairs": options.pairs,
        "ray": not options.no_ray,
        "results": results,
        "machine": machine(),
        "versions": versions(),
    }


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--sizes", nargs="+", default=["330k", "780k"], help="model sizes by name")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--precision", choices=["fp32", "bf16"], default="fp32", help="a CPU without AVX-512 emulates bf16"
    )
    parser.add_argument("--sequence-length", type=int, default=256, help="tokens in a row")
    parser.add_argument("--vocab-size", type=int, default=2048, help="tokens in the vocabulary")
    parser.add_argument("--rows", type=int, default=16, help="rows in an optimiser step")
    parser.add_argument("--rows-per-microbatch", type=int, default=16, help="rows passed forward at once")
    parser.add_argument("--steps", type=int, default=12, help="optimiser steps of a turn")
    parser.add_argument(
        "--pairs", type=int, default=5, help="turns of each side that count; one more goes before"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="compute threads of either side")
    parser.add_argument(
        "--no-ray", action="store_true", help="train ours without Ray, for machines it cannot be brought to"
    )
    parser.add_argument(
        "--compile", action="store_true", help="compile the layers of ours and of the bare loop"
    )
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=["plain"], help="of the bare loop")
    options = parser.parse_args()
    give(measure(options), options.out)


if __name__ == "__main__":
    main()
