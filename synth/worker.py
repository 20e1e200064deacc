"""Parts made on an engine of our own: several at a time, so that the engine never waits at a part's end."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from synth.config import RephrasePlacement
from synth.drafts import Draft
from synth.engines.accounts import PartUsage
from synth.engines.factory import device_name, open_engine
from synth.engines.protocol import FATAL_REASONS, Engine
from synth.engines.supervisor import Outcome, Quarantined, Supervisor, TooManyDeaths
from synth.engines.tunings import TUNINGS, find_tuning, find_tunings, tuned_placement
from synth.errors import UserError
from synth.ledger import LedgerEntry, read_entry
from synth.part_writer import DraftedPart, Finished, GeneratedBy, PartCost, PartWriter
from synth.rephrase import RephraseWork
from synth.storage import list_names, study_path

IN_FLIGHT_PER_SEQUENCE = 2.0
"""Requests handed to the engine per sequence it decodes, so that one is waiting whenever one ends, also when all of them
end at once because all run into the cap."""

LEAST_PARTS, LONGEST_OVER_MEAN = 3, 8
"""Parts in flight at least, and how much longer than the mean answer the longest one of a part is taken to be. A part
takes as long as its longest answer; on average only rows / LONGEST_OVER_MEAN of its rows are in the engine all that time."""


def parts_at_a_time(work: RephraseWork, placement: RephrasePlacement) -> int:
    """Return how many parts an engine works on at once: so many that their unfinished rows fill it at any moment."""
    if placement.parts_in_flight is not None:
        return placement.parts_in_flight
    full = placement.num_seqs * LONGEST_OVER_MEAN / work.rows_per_part
    return max(LEAST_PARTS, 1 + math.ceil(full))


def most_parts_at_a_time(work: RephraseWork) -> int:
    """Return how many parts an engine works on at most, whichever tuning the device it comes to lie on has: the driver hands
    the parts out, and does not know that device.

    Raises UserError when a file under `tunings/` is no tuning.
    """
    config, placements = work.config, [work.config.placement]
    if config.placement.takes_tunings:
        found = find_tunings(
            config.root, config.engine, work.model.hash, config.placement.tensor_parallel, work.recipes, work.sources[0]
        )  # fmt: skip
        placements += [tuned_placement(config.placement, tuning.settings) for tuning in found]
    return max(parts_at_a_time(work, placement) for placement in placements)


def tuned_for(work: RephraseWork) -> tuple[RephrasePlacement, str | None]:
    """Return the placement with what tune_engine found for this machine in its open settings, and the tuning's name.

    Raises UserError when a file under `tunings/` is no tuning.
    """
    config, placement = work.config, work.config.placement
    if not placement.takes_tunings or not list_names(study_path(config.root, TUNINGS), ".json"):
        return placement, None
    device = device_name(config.engine, placement)
    tuning = find_tuning(
        config.root, config.engine, work.model.hash, device, placement.tensor_parallel, work.recipes, work.sources[0]
    )  # fmt: skip
    if tuning is None:
        return placement, None
    return tuned_placement(placement, tuning.settings), tuning.name


def longest_first(drafts: Sequence[Draft]) -> list[int]:
    """Return the numbers of a part's rows in the order they are sent: what takes longest must not be what is left at the end.

    Nobody knows how long an answer will be; one as long as its chunk, up to the recipe's cap, is what most recipes ask for.
    Rows of equal length stay together, samples of one prompt among them, which share its prefix in the cache.
    """

    def expected_tokens(at: int) -> int:
        draft = drafts[at]
        prompt, longest = len(draft.prompt_token_ids), draft.prepared.max_output_tokens
        if "document" not in draft.prepared.template.slots:
            return prompt + longest
        return prompt + min(longest, prompt - draft.prepared.template.num_tokens)

    return sorted(range(len(drafts)), key=expected_tokens, reverse=True)


class RephraseWorker:
    """Makes parts of one synthetic set on one engine, several at a time on one event loop."""

    def __init__(self, work: RephraseWork, engine: Engine | None = None) -> None:
        config, (placement, self.tuning) = work.config, tuned_for(work)
        self.work, self.placement = work, placement
        self._engine = engine or open_engine(config.engine, placement, work.model)
        self._supervisor = Supervisor(
            self._engine,
            math.ceil(placement.num_seqs * IN_FLIGHT_PER_SEQUENCE),
            config.allowed_engine_deaths(0),
            placement.request_timeout_seconds,
            placement.start_timeout_seconds,
            placement.outage_seconds,
        )
        self._writer = PartWriter(work)
        self._rows: dict[int, int] = {}
        self._answered: Counter[int] = Counter()
        # One thread: tokenizers are not made for several, and the event loop must never wait for their work.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rephrase")

    async def make_part(self, part: int) -> LedgerEntry:
        """Make one part unless it is done and nothing of it is to be tried again; return its ledger entry.

        Raises UserError: the engine does not start or answers nobody any more, the input is damaged, the output cannot be
        written, or the part's rows kill the engine more often than `max_engine_deaths_per_part`.
        """
        work, began = self.work, time.monotonic()
        loop = asyncio.get_running_loop()
        entry = await loop.run_in_executor(self._thread, read_entry, work.directory, part, work.num_parts)
        if entry and not (work.config.retry_quarantined and entry.can_be_retried):
            return entry
        await self._supervisor.ready(part)
        drafted = await loop.run_in_executor(self._thread, self._draft, part, entry)
        allowed = work.config.allowed_engine_deaths(len(drafted.drafts))
        self._supervisor.allow(part, allowed)
        self._rows[part] = len(drafted.drafts)
        answers = {at: asyncio.create_task(self._finish(drafted, at)) for at in longest_first(drafted.drafts)}
        try:
            finished = await asyncio.gather(*(answers[at] for at in range(len(drafted.drafts))))
        except TooManyDeaths as error:
            raise UserError(
                f"part {part}: its rows have killed the engine {error.deaths} times ({error.last_words}), more than "
                f"max_engine_deaths_per_part = {allowed}; the rows found guilty are noted and will be left out: run the job again, "
                "with a higher bound if the engine itself is sound."
            ) from None
        finally:
            for answer in answers.values():
                answer.cancel()
            del self._rows[part], self._answered[part]
        # Taken here: the event loop changes the accounts, and the commit's thread must not meet it there.
        usage = self._supervisor.usage(part)
        committed = await loop.run_in_executor(self._thread, self._commit, drafted, finished, began, usage)
        self._supervisor.forget(part)
        return committed

    async def make_parts(self, parts: Iterable[int]) -> list[LedgerEntry]:
        """Make parts, as many at a time as `parts_at_a_time` says; return their entries in the same order.

        Raises UserError as `make_part` does.
        """
        gate = asyncio.Semaphore(parts_at_a_time(self.work, self.placement))

        async def make(part: int) -> LedgerEntry:
            async with gate:
                return await self.make_part(part)

        return await asyncio.gather(*map(make, parts))

    @property
    def load(self) -> tuple[int, int]:
        """Requests in the engine, and requests that wait."""
        return self._supervisor.load

    @property
    def answered(self) -> dict[int, tuple[int, int]]:
        """Of every part in work, the rows that are answered, and all rows."""
        return {part: (self._answered[part], rows) for part, rows in self._rows.items()}

    @property
    def last_words(self) -> str:
        """What the engine said when it died last; "" while it has not."""
        return self._supervisor.last_words

    async def close(self) -> None:
        """Take the engine down."""
        await self._supervisor.close()
        self._thread.shutdown()

    def _draft(self, part: int, earlier: LedgerEntry | None) -> DraftedPart:
        tokenizer = self._engine.tokenizer
        return self._writer.redraft(earlier, tokenizer) if earlier else self._writer.draft(part, tokenizer)

    async def _finish(self, drafted: DraftedPart, at: int) -> Finished:
        """Have a row answered, and judge it at once: when the part's last answer comes, little is left to do."""
        stays = drafted.stays.get(at)
        outcome = None if stays else await self._answer(drafted, drafted.drafts[at])
        self._answered[drafted.part] += 1
        if stays:
            return stays
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._thread, self._writer.finish, drafted.drafts[at], outcome, self._engine.version
        )

    async def _answer(self, drafted: DraftedPart, draft: Draft) -> Outcome | None:
        if not draft.prompt_token_ids:
            return None
        if draft.key in drafted.killers:
            return drafted.killers[draft.key]
        outcome = await self._supervisor.generate(drafted.part, draft.request(f"{drafted.part}-{draft.key}"))
        if isinstance(outcome, Quarantined) and outcome.reason in FATAL_REASONS:
            drafted.killers[draft.key] = outcome
            self._writer.note_killers(drafted)
        return outcome

    def _commit(
        self, drafted: DraftedPart, finished: list[Finished], began: float, usage: PartUsage
    ) -> LedgerEntry:
        config = self.work.config
        on_server = config.engine.kind == "http"  # whose devices, and who else they work for, nobody says

        def of_devices(seconds: float) -> float | None:
            return None if on_server else seconds * (config.placement.gpus_per_engine or 1.0)

        cost = PartCost(
            device_seconds=of_devices(usage.device_seconds), engine_start_seconds=of_devices(usage.start_seconds),
            engine_deaths=usage.deaths + usage.shared_deaths, retries=usage.retries, wall_seconds=time.monotonic() - began,
            lost_attempts=usage.lost_attempts, lost_device_seconds=of_devices(usage.lost_device_seconds),
        )  # fmt: skip
        generated = GeneratedBy(self._engine.version, self._engine.tokenizer.prompt_format, self.tuning)
        return self._writer.commit(drafted, finished, generated, cost)
