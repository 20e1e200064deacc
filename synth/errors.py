"""The errors a person can act on. A job prints their one sentence and exits with code 2."""


class UserError(ValueError):
    """Something the caller asked for cannot be done: names the field, the value and the remedy in one sentence."""


class IdentityMismatch(UserError):
    """A directory already holds an artefact of another recipe; carries the differing fields."""

    def __init__(self, directory: str, differences: dict[str, tuple[object, object]]) -> None:
        self.directory = directory
        self.differences = differences
        fields = "; ".join(
            f"{field}: there {old!r}, asked for {new!r}" for field, (old, new) in differences.items()
        )
        super().__init__(
            f"{directory} already holds an artefact of another recipe ({fields}). "
            "Give the new one another name, or move the old one away."
        )

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.directory, self.differences)  # it crosses from a Ray worker to the driver


class IncompleteArtefact(UserError):
    """A step was asked to read what an earlier step has not finished."""

    def __init__(self, directory: str, made_by: str, lacking: str = "no manifest.json in it") -> None:
        self.directory = directory
        self.made_by = made_by
        self.lacking = lacking
        super().__init__(
            f"{directory} is missing or unfinished ({lacking}): run {made_by} first, with the same root and name."
        )

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.directory, self.made_by, self.lacking)


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, its kind where it says nothing: fit for a sentence of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
