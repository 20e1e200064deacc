"""Loss on the held-out domains: nats per token, bits per byte, and their averages.

Measured with the weights in the run's own precision, as they were trained and as they would be exported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from train.distributed import rank, total, world_size
from train.model import Pretrainer
from train.record import DomainLoss, Evaluation
from train.tokens import EvaluationTokens


def evaluation_steps(num_steps: int, evaluations: int) -> frozenset[int]:
    """Return the numbers of finished steps after which a run is evaluated: evenly spaced, the last one at its end."""
    return frozenset(max(1, num_steps * (i + 1) // evaluations) for i in range(evaluations))


def evaluate(
    module: Pretrainer,
    domains: Mapping[str, EvaluationTokens],
    *,
    train_tokens: int,
    rows_per_batch: int,
    device: torch.device,
) -> Evaluation:
    """Measure the loss of every row of every domain, rows shared by the workers, and return it on each of them."""
    rows = np.concatenate([domain.rows for domain in domains.values()])
    flags = [domain.counted for domain in domains.values()]
    counted = None if flags[0] is None else np.concatenate([each for each in flags if each is not None])
    nats = _row_nats(module, rows, counted, rows_per_batch, device)
    ends = np.cumsum([len(domain.rows) for domain in domains.values()])
    by_domain = dict(zip(domains, np.split(nats, ends[:-1]), strict=True))
    return summarise(by_domain, domains, train_tokens)


def summarise(
    row_nats: Mapping[str, NDArray[np.float64]], domains: Mapping[str, EvaluationTokens], train_tokens: int
) -> Evaluation:
    """Return the losses by domain, and their averages, from the summed nats of each row."""
    nats = {domain: math.fsum(row_nats[domain]) for domain in domains}
    losses = {
        domain: DomainLoss(
            loss_nats_per_token=nats[domain] / tokens.num_tokens,
            bits_per_byte=nats[domain] / math.log(2) / tokens.num_bytes,
            tokens=tokens.num_tokens,
            bytes=tokens.num_bytes,
        )
        for domain, tokens in domains.items()
    }
    total_nats = math.fsum(nats.values())
    return Evaluation(
        train_tokens=train_tokens,
        domains=losses,
        loss_nats_per_token=total_nats / sum(loss.tokens for loss in losses.values()),
        macro_loss_nats_per_token=math.fsum(loss.loss_nats_per_token for loss in losses.values())
        / len(losses),
        bits_per_byte=total_nats / math.log(2) / sum(loss.bytes for loss in losses.values()),
    )


def _row_nats(
    module: Pretrainer,
    rows: NDArray[np.uint16] | NDArray[np.uint32],
    counted: NDArray[np.bool_] | None,
    rows_per_batch: int,
    device: torch.device,
) -> NDArray[np.float64]:
    nats = torch.zeros(len(rows), dtype=torch.float64, device=device)
    num_batches = math.ceil(len(rows) / rows_per_batch)
    # Every worker goes forward equally often, because ZeRO 3 gathers weights in each pass: spare passes repeat a batch.
    for turn in range(math.ceil(num_batches / world_size())):
        batch = turn * world_size() + rank()
        start = min(batch, num_batches - 1) * rows_per_batch
        tokens = torch.from_numpy(rows[start : start + rows_per_batch].astype(np.int64)).to(device)
        with torch.no_grad():
            which = None if counted is None else counted[start : start + rows_per_batch]
            _, found = module(tokens, by_row=True, **_flags_of(which, device))
        if batch < num_batches:
            nats[start : start + rows_per_batch] = found
    result: NDArray[np.float64] = total(nats).cpu().numpy()
    return result


def _flags_of(counted: NDArray[np.bool_] | None, device: torch.device) -> dict[str, torch.Tensor]:
    return {} if counted is None else {"counted": torch.from_numpy(counted).to(device)}
