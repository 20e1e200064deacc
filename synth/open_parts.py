"""Parts in work: how often each was begun, how far each is, and a line of progress while none of them ends."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from synth.progress import Progress

Answered = Mapping[int, tuple[int, int]]
"""By part in work: its rows that are answered, and all its rows."""

TELL_SECONDS = 5.0
"""How often those that make the parts are asked how far they are."""


class OpenParts:
    """What those that make parts say of them; it outlives them."""

    def __init__(self) -> None:
        self._begun: Counter[int] = Counter()
        self._answered: dict[str, Answered] = {}

    def begin(self, part: int) -> int:
        """Count one more attempt at a part and return how many there have been."""
        self._begun[part] += 1
        return self._begun[part]

    def hear(self, maker: str, answered: Answered) -> None:
        """Take what one that makes parts says of all it has in work."""
        self._answered[maker] = answered

    def answered(self) -> Answered:
        """Return what was heard last, of all parts; a part that another one has taken up since counts once."""
        return {part: rows for each in self._answered.values() for part, rows in each.items()}


class Telling:
    """Keeps a progress in parts up to date by the rows of those in work, on a thread of its own, for a `with` statement."""

    def __init__(self, progress: Progress, ask: Callable[[], Answered]) -> None:
        """`ask` returns how far the parts in work are, and nothing where that cannot be had."""
        self._progress, self._ask = progress, ask
        self._finished: set[int] = set()
        self._note = ""
        self._in_work: dict[int, tuple[int, int]] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._tell, name="parts in work", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(TELL_SECONDS)

    def finish(self, part: int, note: str) -> None:
        """Count a part as done: what was last heard of it is of no interest any more. The note stands in all lines from here on."""
        self._finished.add(part)
        self._note = note
        self._progress.advance(note=note)

    def _tell(self) -> None:
        while not self._over.wait(TELL_SECONDS):
            # A part of which no more is heard is being written, or its result is under way: all its rows are answered.
            answered_all = {part: (rows, rows) for part, (_, rows) in self._in_work.items()}
            self._in_work = {
                part: rows
                for part, rows in (answered_all | dict(self._ask())).items()
                if part not in self._finished
            }
            done, of = (sum(rows[place] for rows in self._in_work.values()) for place in (0, 1))
            if of and not self._over.is_set():
                self._progress.partly(
                    sum(answered / rows for answered, rows in self._in_work.values() if rows),
                    f"{done:,} of the {of:,} rows in work answered"
                    + (f", {self._note}" if self._note else ""),
                )
