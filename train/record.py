"""RunRecord: what one pre-training run says of itself, and the only thing later steps may read of it.

Written last and whole to `runs/<run_id>/record.json`. A run that diverged or failed has a record too, with the
reason; nothing stands in for a number that was not measured.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict
from upath import UPath

from synth.storage import is_local, list_names, read_json, study_path, write_json_atomic
from train.flops import count_parameters, train_flops, train_flops_6nd
from train.placement import TrainPlacement
from train.run import RunConfig

Asked = TypeVar("Asked")
Found = TypeVar("Found")

RECORD_FILE = "record.json"

READERS = 32
"""Records asked of an object store at once: each answer takes tens of milliseconds, nearly all of them waiting."""

MODEL_DIRECTORY = "model"
"""In the directory of a complete run that was trained with `placement.keep_models`; whole when the record is there."""


class Record(BaseModel):
    """Base of everything a step writes for another to read: frozen, strict, JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class SourceUse(Record):
    """What a run drew from one source."""

    tokens: int
    """Training tokens from this source."""
    unique_tokens: int
    """Of these, tokens seen for the first time."""
    repeated_tokens: int
    """Of these, tokens seen before in this run."""
    epochs: float
    """Passes over the source: tokens / tokens in the source."""


class DomainLoss(Record):
    """Evaluation on one held-out domain."""

    loss_nats_per_token: float
    """Mean cross-entropy per predicted token, nats."""
    bits_per_byte: float
    """Total cross-entropy in bits / UTF-8 bytes of the text."""
    tokens: int
    """Predicted tokens."""
    bytes: int
    """UTF-8 bytes of the evaluated text."""


class Evaluation(Record):
    """All held-out domains at one point of a run."""

    train_tokens: int
    """Tokens trained on when this was measured."""
    domains: dict[str, DomainLoss]
    loss_nats_per_token: float
    """Token-weighted mean over domains: total nats / total tokens. The loss the laws are fitted to."""
    macro_loss_nats_per_token: float
    """Unweighted mean of the domains' losses."""
    bits_per_byte: float
    """Total bits / total bytes."""

    def scalars(self) -> dict[str, float]:
        """Return the losses by name, as trackers want them: the averages, and nats per token of each domain."""
        averages = ("loss_nats_per_token", "macro_loss_nats_per_token", "bits_per_byte")
        return {name: getattr(self, name) for name in averages} | {
            domain: loss.loss_nats_per_token for domain, loss in self.domains.items()
        }


class DeviceUse(Record):
    """What a run was trained on, and how well it used it."""

    name: str
    """Name of the leading worker's device."""
    peak_flops_per_second: float | None
    """Peak speed of one device in the run's precision, FLOP/s: as configured or from its data sheet; null when unknown."""
    mfu_fraction: float | None
    """Model FLOPs utilisation of training without evaluation, `train_flops` a second over the peak of all workers' devices,
    [0, 1]; null when no peak is known."""
    peak_memory_bytes: int
    """Most memory seen in this attempt: allocated on the leading worker's GPU, else resident in its process."""
    rows_per_microbatch: int
    """Rows a worker passed forward at once. Another number adds gradients up in another order: losses differ by float noise."""
    did_not_fit: tuple[int, ...] = ()
    """Larger numbers of rows that the device had no memory for; steps done before that were done with them."""


class TrunkUse(Record):
    """What a run that branches off a trunk found trained already, and did not train itself."""

    trunk_id: str
    """Directory under `trunks/`; runs with the same one share everything but the budget and the decay."""
    train_tokens: int
    """Tokens taken over; 0 for the first run of a trunk."""
    wall_seconds: float
    """Wall-clock seconds they took when they were trained."""
    device_seconds: float
    """The same times the devices of that time."""


class RunRecord(Record):
    """One run, finished one way or another."""

    run_id: str
    config: RunConfig
    status: Literal["complete", "diverged", "failed"]
    reason: str | None = None
    """Why it is not complete; null when it is."""
    num_params_non_embedding: int
    """Parameters without the embedding and output matrices: the N of the laws."""
    num_params_total: int
    """All parameters, a tied matrix counted once."""
    train_tokens: int
    """Tokens really trained on (whole steps): the D of the laws."""
    train_flops_6nd: float
    """6 N D with N = num_params_non_embedding (Kaplan et al. 2020, eq. 2.2 times D), FLOP."""
    train_flops: float
    """Forward and backward of every matrix product, attention and the output projection included, FLOP."""
    trunk: TrunkUse | None = None
    """What was taken over from a trunk; null without branching. All numbers of the record are those of the run from its
    first token, as if it had trained alone; `own_tokens` and `own_device_seconds` leave out what was taken over."""
    sources: dict[str, SourceUse]
    final: Evaluation | None = None
    """The last evaluation; null unless complete."""
    evaluations: tuple[Evaluation, ...] = ()
    peak_learning_rate: float
    """The learning rate really used at the peak, after any rule of scale."""
    wall_seconds: float
    """Wall-clock seconds of training and evaluation, start-up left out, all attempts added."""
    device_seconds: float
    """wall_seconds x workers x devices of each: its GPUs, a quarter for a worker that takes a quarter of one; 1 on CPUs."""
    tokens_per_second: float
    """Training throughput without evaluation."""
    device: DeviceUse | None = None
    """What it was trained on; null when it failed."""
    attempts: int = 1
    """Times the run was started; above 1 it was interrupted and resumed."""
    placement: TrainPlacement
    provenance: dict[str, Any]

    @property
    def own_tokens(self) -> int:
        """Tokens trained for this run: the sum over runs is what was trained in all."""
        return self.train_tokens - (self.trunk.train_tokens if self.trunk else 0)

    @property
    def own_train_flops(self) -> float:
        """Part of `train_flops` spent for this run, FLOP."""
        return self.train_flops * self.own_tokens / self.train_tokens if self.train_tokens else 0.0

    @property
    def own_device_seconds(self) -> float:
        """Device-seconds spent for this run: the sum over runs is what was spent in all."""
        return self.device_seconds - (self.trunk.device_seconds if self.trunk else 0.0)


def run_directory(root: str, run_id: str) -> UPath:
    """Return the directory of a run under the study root."""
    return study_path(root, "runs", run_id)


def write_record(root: str, record: RunRecord) -> None:
    """Write a run's record, whole or not at all."""
    write_json_atomic(run_directory(root, record.run_id) / RECORD_FILE, record.model_dump(mode="json"))


def read_record(root: str, run_id: str) -> RunRecord | None:
    """Return the record of a run, or None when it has not finished."""
    try:
        return RunRecord.model_validate(read_json(run_directory(root, run_id) / RECORD_FILE))
    except FileNotFoundError:
        return None


def of_each(root: str, look: Callable[[Asked], Found], asked: Iterable[Asked]) -> list[Found]:
    """Return what `look` finds for each of many runs, in order; of an object store many are asked at once."""
    if is_local(study_path(root)):
        return [look(each) for each in asked]
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(look, asked))


def what_was_trained(run: RunConfig, vocab_size: int, train_tokens: int) -> dict[str, Any]:
    """Return the fields of a run's record that follow from the run, the vocabulary and the tokens it got to."""
    num_params = count_parameters(run.model, vocab_size)
    return {
        "run_id": run.run_id,
        "config": run,
        "num_params_non_embedding": num_params.non_embedding,
        "num_params_total": num_params.total,
        "train_tokens": train_tokens,
        "train_flops_6nd": train_flops_6nd(num_params.non_embedding, train_tokens),
        "train_flops": train_flops(run.model, vocab_size, run.sequence_length, train_tokens),
    }


def read_records(root: str) -> list[RunRecord]:
    """Return the records of all finished runs under a study root, by run id."""
    return list(records_of(root, list_names(study_path(root, "runs"))).values())


def records_of(root: str, run_ids: Iterable[str]) -> dict[str, RunRecord]:
    """Return the records there are of these runs, by run id in the order given; from an object store many at once."""
    run_ids = list(dict.fromkeys(run_ids))
    found = of_each(root, functools.partial(read_record, root), run_ids)
    return {run_id: record for run_id, record in zip(run_ids, found, strict=True) if record is not None}
