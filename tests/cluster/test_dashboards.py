"""The Grafana dashboard asks for numbers that exist, and `make dashboards` says what is missing."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import yaml

import synth.telemetry
import train.telemetry
import tune.telemetry

DEPLOY = Path(__file__).parent.parent.parent / "deploy"
METRICS = [*synth.telemetry.METRICS, *train.telemetry.METRICS, *tune.telemetry.METRICS]
SHOWN = {f"ray_{each.name}" + ("_total" if each.kind == "counter" else ""): each for each in METRICS}


def panels():
    return json.loads((DEPLOY / "grafana/dashboards/study.json").read_text())["panels"]


def test_every_panel_asks_for_a_number_that_is_shown_and_by_labels_it_has():
    for panel in panels():
        for target in panel["targets"]:
            asked = re.findall(r"ray_synthscale\w+", target["expr"])
            assert asked
            assert set(asked) <= SHOWN.keys(), panel["title"]
            labels = {label for name in asked for label in SHOWN[name].labels}
            by = re.findall(r"by \(([\w, ]+)\)", target["expr"])
            used = {
                *re.findall(r"{{(\w+)}}", target["legendFormat"]),
                *(word for words in by for word in words.split(", ")),
            }
            assert used <= labels, panel["title"]


def test_every_number_has_a_panel():
    asked = {name for panel in panels() for target in panel["targets"] for name in re.findall(r"ray_synthscale\w+", target["expr"])}  # fmt: skip
    assert asked == SHOWN.keys()


def test_names_are_distinct_and_panels_do_not_overlap():
    assert len(SHOWN) == len(METRICS)
    places = [tuple(panel["gridPos"].values())[:2] for panel in panels()]
    assert len(set(places)) == len(places)


def test_grafana_finds_its_source_and_its_dashboards():
    (source,) = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text())[
        "datasources"
    ]
    assert {panel["datasource"]["uid"] for panel in panels()} == {source["uid"]}
    assert source["url"] == "http://127.0.0.1:9090"
    providers = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/synthscale.yaml").read_text())[
        "providers"
    ]
    assert providers[0]["options"]["path"] == "$SYNTHSCALE_DASHBOARDS"


def test_what_is_not_installed_is_said(tmp_path):
    done = subprocess.run(
        [sys.executable, DEPLOY / "dashboards.py"], env=os.environ | {"PATH": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    said = done.stderr.splitlines()
    assert len(said) == 2
    assert said[0].startswith("dashboards: prometheus is not on the PATH: get it from https://prometheus.io")
    assert said[1].startswith("dashboards: grafana is not on the PATH")


def test_what_is_installed_is_started_with_what_stands_in_deploy(tmp_path):
    """Both programs are stood in for by a script that writes down how it was called."""
    for name, then in (
        ("prometheus", f"while not os.path.exists('{tmp_path}/grafana.called'): pass"),
        ("grafana", "time.sleep(60)"),
    ):
        script = tmp_path / name
        script.write_text(
            f"#!{sys.executable}\nimport os, sys, time\nfrom pathlib import Path\n"
            f"Path('{tmp_path}/{name}.part').write_text(repr([sys.argv, dict(os.environ)]))\n"
            f"Path('{tmp_path}/{name}.part').rename('{tmp_path}/{name}.called')\n{then}\n"
        )
        script.chmod(0o755)
    done = subprocess.run(
        [sys.executable, DEPLOY / "dashboards.py"], env=os.environ | {"PATH": str(tmp_path)}, capture_output=True, text=True,
        timeout=30,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"--config.file={DEPLOY / 'prometheus.yml'}" in (tmp_path / "prometheus.called").read_text()
    grafana = (tmp_path / "grafana.called").read_text()
    assert f"'GF_PATHS_PROVISIONING': '{DEPLOY / 'grafana/provisioning'}'" in grafana
    assert "'GF_SERVER_HTTP_ADDR': '127.0.0.1'" in grafana
    assert "'GF_AUTH_DISABLE_LOGIN_FORM': 'true'" in grafana
    assert "'GF_AUTH_BASIC_ENABLED': 'false'" in grafana


def test_what_was_started_ends_with_it(tmp_path):
    script = tmp_path / "prometheus"
    script.write_text(
        f"#!{sys.executable}\nimport os, time\nprint(os.getpid(), flush=True)\ntime.sleep(60)\n"
    )
    script.chmod(0o755)
    command = [sys.executable, DEPLOY / "dashboards.py"]
    with subprocess.Popen(
        command, env=os.environ | {"PATH": str(tmp_path)}, stdout=subprocess.PIPE, text=True
    ) as job:
        started = psutil.Process(int(job.stdout.readline()))
        job.terminate()
        assert job.wait(30) == 0
    assert not started.is_running()
