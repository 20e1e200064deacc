"""The command line all jobs share: a TOML file, dotted flags over it, a plan, exit codes.

`--config FILE` gives values, every field of the job's configuration is also a flag (`--placement.engines 2`), flags
win. `--dry-run` prints the resolved configuration and the plan without starting Ray. What a person can mend is one
sentence on stderr and exit code 2; Ctrl-C is one, too, and exit code 130; anything else is a traceback and exit code 1.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import functools
import json
import os
import pkgutil
import sys
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NoReturn, Protocol, TypeVar

import pydantic
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict

from rayjobs.cluster import connect
from rayjobs.mending import details_of
from synth.config import JobConfig
from synth.errors import UserError
from synth.plan import Plan
from synth.storage import StoreAway, check_credentials

C = TypeVar("C", bound=JobConfig)


@dataclass(frozen=True)
class Look:
    """A flag that shows something instead of running the job."""

    flag: str
    """Such as `--preview`."""
    help: str
    show: Callable[..., Iterable[str]]
    """Called with the configuration and the flag's number, or with nothing when `needs_config` is false; gives lines."""
    needs_config: bool = True
    """Whether the flag takes a number and needs a valid configuration."""


@dataclass(frozen=True)
class Flag:
    """A flag of one job that is no field of its configuration."""

    flag: str
    """Such as `--only`; its words, which may be several, reach `plan` and `run` as a tuple under the name `only`."""
    help: str
    switch: bool = False
    """Whether it takes no word and is on or off."""

    @property
    def name(self) -> str:
        """The keyword its words are passed by."""
        return self.flag.strip("-").replace("-", "_")


class Mistakes(UserError):
    """Several things a person can mend, each in one sentence."""

    def __init__(self, sentences: Sequence[str]) -> None:
        self.sentences = tuple(sentences)
        super().__init__("; ".join(self.sentences))


@dataclass(frozen=True)
class Job(Generic[C]):
    """One job: how it is configured, what it would do, and the function that does it."""

    name: str
    config: type[C]
    plan: Callable[..., Plan | Sequence[Plan]]
    """Checks the configuration against the world and says what is to do; never starts Ray."""
    run: Callable[..., Any]
    needs_ray: bool = True
    """Connect to Ray before `run`, unless the plan is finished."""
    connects_itself: bool = False
    """`run` takes a function `connect(step, configuration)` and calls it before each step that needs Ray."""
    looks: tuple[Look, ...] = ()
    """Flags that print something and start nothing."""
    flags: tuple[Flag, ...] = ()
    """Flags beside the configuration, passed to `plan` and `run`."""


def lazily(name: str) -> Callable[..., Any]:
    """Return the function `package.module:function`, imported when it is called.

    So that `--help` and `--dry-run` load neither Ray nor torch; a test resolves every name used.
    """

    def call(*arguments: Any, **options: Any) -> Any:
        return pkgutil.resolve_name(name)(*arguments, **options)

    call.__qualname__ = call.__name__ = name
    return call


class Main(Protocol):
    """`main(argv)` of a job; without arguments it reads the process's own."""

    def __call__(self, argv: Sequence[str] | None = None) -> int: ...


def main_of(job: Job[Any]) -> Main:
    """Return the `main(argv) -> exit code` of a job."""

    def main(argv: Sequence[str] | None = None) -> int:
        try:
            return guarded(job.name, lambda: _run(job, list(sys.argv[1:] if argv is None else argv)))
        except KeyboardInterrupt:
            if argv is not None:  # it is for the caller, whose process this is
                raise
            _leave(f"{job.name}: interrupted: what is done stays done, run it again to go on.")

    return main


INTERRUPTED = 130
"""Exit code of a process that Ctrl-C has ended, by the custom of shells: 128 and the signal's number."""


def _leave(sentence: str) -> NoReturn:
    """End this process now, with a sentence: Ray and all it started for the process end after it, as after a kill.

    An orderly end would take Ray from under steps that are at work in threads, which would see failures in that.
    """
    print(sentence, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(INTERRUPTED)


def guarded(name: str, action: Callable[[], int]) -> int:
    """Run an action; turn what a person can mend, disks and stores included, into one sentence on stderr and exit code 2."""
    try:
        return action()
    except pydantic.ValidationError as error:
        for sentence in sentences(error):
            print(f"{name}: {sentence}", file=sys.stderr)
        return 2
    except UserError as error:
        for sentence in error.sentences if isinstance(error, Mistakes) else (_own_words(error),):
            print(f"{name}: {sentence}", file=sys.stderr)
        return 2
    except OSError as error:
        cause = getattr(error, "cause", error)  # of a remote task
        if not isinstance(cause, StoreAway) and getattr(cause, "errno", None) not in _OF_THE_DISK:
            raise
        print(
            f"{name}: {cause}: mend the disk or the store, then run it again; what is done stays done.",
            file=sys.stderr,
        )
        return 2


_OF_THE_DISK = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
"""What an OSError says that a person can mend: no right to read or write, no room. Others are mistakes of ours."""


def _run(job: Job[Any], argv: list[str]) -> int:
    for look in job.looks:
        if not look.needs_config and look.flag in argv:
            return _print_lines(look.show())
    config, options = parse(job, argv)
    check_credentials(getattr(config, "root", ""))
    for look in job.looks:
        number = getattr(options, look.flag.strip("-").replace("-", "_"), None)
        if look.needs_config and number is not None:
            return _print_lines(look.show(config, number))
    given = {
        flag.name: getattr(options, flag.name) if flag.switch else tuple(getattr(options, flag.name) or ())
        for flag in job.flags
    }
    plan = job.plan(config, **given)
    plans = [plan] if isinstance(plan, Plan) else list(plan)
    if options.dry_run:
        print(json.dumps(config.model_dump(mode="json"), indent=2, ensure_ascii=False))
        for each in plans:
            print(describe(each))
        return 0
    finished = all(each.finished for each in plans)
    for each in plans:
        # A job that connects itself runs several steps, and says each one's warnings when its turn comes.
        for warning in () if each.finished or job.connects_itself else each.warnings:
            print(f"[{job.name}] warning: {warning}", file=sys.stderr)
    join = functools.partial(connect, dashboard=options.dashboard)
    if job.needs_ray and not finished:
        join(job.name, config)
    job.run(config, **given, **({"connect": join} if job.connects_itself else {}))
    if finished:
        print(f"[{job.name}] nothing to do: {plans[-1].output} is finished", file=sys.stderr)
    return 0


def _print_lines(lines: Iterable[str]) -> int:
    try:
        for line in lines:
            print(line)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - the interpreter flushes it at exit
    return 0


# --- reading the command line ----------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """An argument parser whose complaint is one sentence, with the nearest flag that exists."""

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments: "):
            flag = message.split(": ", 1)[1].split()[0]
            known = [option for action in self._actions for option in action.option_strings]
            message = f"{flag} is not a flag of this job{_did_you_mean(flag.split('=')[0], known)}"
        raise UserError(f"{message}; --help lists all flags.")


def parse(job: Job[C], argv: list[str]) -> tuple[C, argparse.Namespace]:
    """Return the validated configuration and the common options (`config`, `dry_run`, `dashboard`).

    Raises UserError for a file or flag that cannot be read, pydantic.ValidationError for values that make no sense.
    """
    parser = _Parser(prog=f"python -m rayjobs.{job.name}", description=job.config.__doc__, allow_abbrev=False)
    add_common_options(parser)
    _add_looks(parser, job.looks)
    _add_flags(parser, job.flags)
    settings = type(
        job.config.__name__, (job.config, BaseSettings), {"model_config": _SETTINGS, "__doc__": None}
    )
    source: CliSettingsSource[Any] = CliSettingsSource(
        settings, cli_parse_args=False, root_parser=parser, cli_prog_name=parser.prog
    )
    common = common_parser()
    _add_looks(common, job.looks)
    _add_flags(common, job.flags)
    options, _ = common.parse_known_args(argv)
    flags = source(args=_joined_negatives(argv))()
    values = read_toml(options.config) if options.config else {}
    return job.config.model_validate(merge(values, flags)), options


_SETTINGS = SettingsConfigDict(
    frozen=True, extra="forbid", use_attribute_docstrings=True, cli_hide_none_type=True,
    cli_use_class_docs_for_groups=True, cli_implicit_flags=True,
)  # fmt: skip


def common_parser() -> argparse.ArgumentParser:
    """Return a parser of the common options alone."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    add_common_options(parser)
    return parser


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Add the options every job has besides its configuration's fields."""
    parser.add_argument(
        "--config", metavar="FILE", help="TOML file with any of the fields below; flags win over it"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the resolved configuration and the plan, start nothing")  # fmt: skip
    parser.add_argument("--dashboard", action=argparse.BooleanOptionalAction, default=False, help="with a local Ray of its own: serve its dashboard on loopback")  # fmt: skip


def _add_looks(parser: argparse.ArgumentParser, looks: Sequence[Look]) -> None:
    for look in looks:
        if look.needs_config:
            parser.add_argument(look.flag, type=_positive, metavar="N", help=look.help)
        else:
            parser.add_argument(look.flag, action="store_true", help=look.help)


def _add_flags(parser: argparse.ArgumentParser, flags: Sequence[Flag]) -> None:
    for flag in flags:
        if flag.switch:
            parser.add_argument(flag.flag, action="store_true", help=flag.help)
        else:
            parser.add_argument(flag.flag, action="append", metavar="STEP", help=flag.help)


def _positive(word: str) -> int:
    if not word.isdigit() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word!r} is not a whole number from 1 on")
    return int(word)


def read_toml(path: str) -> dict[str, Any]:
    """Return the contents of a TOML file. Raises UserError when it is missing or malformed."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"--config {path}: there is no such file.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, IsADirectoryError) as error:
        raise UserError(f"--config {path} is not valid TOML: {error}.") from None


def merge(values: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return `values` with `over` laid over it, tables merged key by key."""
    merged = dict(values)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _joined_negatives(argv: list[str]) -> list[str]:
    """Write `--field -0.25` as `--field=-0.25`: argparse would take the number for a flag."""
    joined: list[str] = []
    for word in argv:
        if (
            joined
            and joined[-1].startswith("--")
            and "=" not in joined[-1]
            and word[:1] == "-"
            and word[1:2].isdigit()
        ):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


# --- saying things ---------------------------------------------------------------------------------------------


BETWEEN_STEPS = "between_steps"
"""Type of a mistake whose message says all there is to say, the value found included."""


JOB_OF_STEP = "job"
"""In the context of a mistake inside a step of a study: the job whose fields these are. The study has no flags for them."""


def sentences(error: pydantic.ValidationError) -> list[str]:
    """Return one sentence per mistake: the dotted field, what is wrong, the value found."""
    return [_sentence(detail) for detail in details_of(error)]


def _sentence(detail: Any) -> str:
    path = ".".join(str(part) for part in detail["loc"]) or "the configuration"
    job = detail.get("ctx", {}).get(JOB_OF_STEP)
    if detail["type"] == "extra_forbidden":
        lists = f"python -m rayjobs.{job} --help" if job else "--help"
        return (
            f"{path} is not a field that exists: remove it or mend its spelling ({lists} lists all fields)."
        )
    if detail["type"] == "missing":
        return f"{path} is missing: give it in the file of --config{'' if job else f' or as --{path}'}."
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == BETWEEN_STEPS:
        return f"{path}: {message}."
    value = detail["input"]
    shown = "" if isinstance(value, (dict, pydantic.BaseModel)) else f" (it is {value!r})"
    return f"{path}: {message}{shown}."


def _own_words(error: UserError) -> str:
    """Return the sentence of an error raised here or, wrapped in a stack trace, in a remote task."""
    cause = getattr(error, "cause", None)
    return str(cause if isinstance(cause, UserError) else error)


def _did_you_mean(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.75)
    return f"; did you mean {near[0]}?" if near else ""


def describe(plan: Plan) -> str:
    """Return a plan as text for a person."""
    lines = [f"\n{plan.step} -> {plan.output}" + (" (finished)" if plan.finished else "")]
    width = max((len(name) for name in plan.facts), default=0)
    lines += [f"  {name:<{width}}  {_shown(value)}" for name, value in plan.facts.items()]
    lines += [f"  warning: {warning}" for warning in plan.warnings]
    return "\n".join(lines)


def _shown(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
