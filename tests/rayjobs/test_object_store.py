"""The demo study in small with its root in an object store: every step, and the results of a local root."""

import os
import re
import subprocess
import sys

import pytest

from tests.assets.object_store import object_store
from tests.assets.ray_head import ROOT
from tests.assets.study_results import results_of

pytestmark = [pytest.mark.drill, pytest.mark.timeout(1800)]


def test_a_study_under_an_s3_root_has_the_results_of_a_local_one(shrunk_demo, finished_demo):
    argv, _ = shrunk_demo
    argv[argv.index("--root") + 1] = "s3://bucket/study"
    command = [sys.executable, "-m", "rayjobs.run_study", *argv]
    with object_store() as client:
        done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=1500)
        assert done.returncode == 0, done.stderr[-6000:]
        assert results_of("s3://bucket/study") == results_of(finished_demo)
        again = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=300)
        assert again.returncode == 0, again.stderr[-4000:]
        steps = re.findall(r"\[study\] \d+/(\d+) .*: finished already", again.stderr)
        assert steps == [str(len(steps))] * len(steps), "every step is there"
        assert steps
        kept = client.list_objects_v2(Bucket="bucket", Prefix="study/report/")["Contents"]
        assert {"study/report/index.html", "study/report/report.md"} <= {each["Key"] for each in kept}
