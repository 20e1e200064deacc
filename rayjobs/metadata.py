"""The page of a submitted job on Ray's dashboard: which study and step it is at, and how far, as its metadata."""

from __future__ import annotations

import json
import os
import sys

from synth.progress import Progress

STUDY, STEP, PROGRESS = "study", "step", "progress"
"""Keys of the metadata, beside what the person who submitted the job gave."""


class JobPage:
    """What the dashboard and `ray job list` show of the job this process is the driver of; nothing for any other driver.

    Ray keeps a job's metadata with its status in the cluster's key-value store and has no call to change it later. The
    job's supervisor writes there before the driver begins and after it has ended, so the two never write at once.
    """

    def __init__(self) -> None:
        job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
        self._submission: str | None = job.get("metadata", {}).get("job_submission_id")

    def put(self, **values: str) -> None:
        """Show these values beside those that are there. Gives up, and says so once, when the store does not take them."""
        if self._submission is None:
            return
        from ray.dashboard.modules.job.common import JobInfoStorageClient
        from ray.experimental import internal_kv

        key = JobInfoStorageClient.JOB_DATA_KEY.format(job_id=self._submission).encode()
        try:
            known = json.loads(internal_kv._internal_kv_get(key, namespace="job"))
            known["metadata"] = (known.get("metadata") or {}) | values
            internal_kv._internal_kv_put(key, json.dumps(known).encode(), overwrite=True, namespace="job")
        except Exception as error:  # whatever it is, a study does not end for want of a caption
            self._submission = None
            print(f"the dashboard's metadata is not kept up to date: {error!r}", file=sys.stderr)

    def hear(self, progress: Progress, text: str) -> None:
        """Show a line of progress."""
        self.put(**{PROGRESS: f"{progress.step}: {text}"})
