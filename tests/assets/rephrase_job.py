"""`rephrase_corpus` in a process of its own, as a person starts it: for tests that wait for it, look into it, kill it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from synth.config import RephraseConfig
from tests.assets.processes import Family

REPOSITORY = Path(__file__).parents[2]
# On a busy machine Ray's agents need longer than the 30 s after which the raylet gives up on itself.
PATIENT_RAY = {"RAY_agent_register_timeout_ms": "300000"}


DRIVER = """
import sys, ray
from synth.config import RephraseConfig
from synth.errors import UserError
from synth.job import rephrase_corpus

config = RephraseConfig.model_validate_json(sys.argv[1])
for attempt in range(10):
    try:
        ray.init(num_cpus=2, include_dashboard=False, logging_level="WARNING")
        break
    except Exception as error:
        if "timed out during startup" not in str(error):
            raise
        ray.shutdown()
try:
    rephrase_corpus(config)
except UserError as error:
    print(f"rephrase_corpus: {error}", flush=True)
    raise SystemExit(2)
"""


class RephraseJob:
    """One run of the job in a process of its own, as `rayjobs` starts it but patient with a slow start of Ray."""

    def __init__(self, config: RephraseConfig, log: Path) -> None:
        self.log = log
        command = [sys.executable, "-c", DRIVER, config.model_dump_json()]
        environment = os.environ | PATIENT_RAY | {"PYTHONPATH": str(REPOSITORY)}
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command, cwd=REPOSITORY, env=environment, start_new_session=True, stdout=output, stderr=output
            )

    def wait(self, seconds: float = 900) -> int:
        return self.process.wait(seconds)

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        """SIGKILL the driver alone, as an out-of-memory killer would; what it started must go by itself."""
        family = Family(self.process.pid)
        self.process.kill()
        self.process.wait()
        assert family.left_after(60) == []

    def end(self) -> None:
        """Take down what is left of it."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
