"""What a person sees of a study on a cluster: numbers on the Prometheus endpoint, and names that say what things do."""

import json
import re
import urllib.error
import urllib.request

import pytest

from tests.assets.ray_head import ray_head, wait_until
from tests.cluster.studies import argv_of, whole_study

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def small(root):
    """Return a study up to a search, with the fewest runs: four of a grid, and a search that finds two of them."""
    study = whole_study(root, documents=48, latency_seconds=0.2)
    study["pretrain"]["grid"] |= {
        "shares": [0.0, 1.0],
        "axes": [{"models": ["12k"], "train_tokens": [2048, 4096]}],
    }
    return {name: study[name] for name in ("root", "corpora", "rephrase", "pack", "pretrain", "search")}


def scraped(head):
    """Return the platform's samples: (name, labels) -> value. The node's agent adds labels of its own, left out here."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{head.metrics_port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
    except OSError:
        return {}
    samples = {}
    for name, labels, value in re.findall(r"^ray_(synthscale_\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
        own = {key: word for key, word in re.findall(r'(\w+)="([^"]*)"', labels) if key.islower()}
        samples[name, tuple(sorted(own.items()))] = float(value)
    return samples


def names(head, what):
    """Return names and classes of what Ray's state API lists, and what actors call themselves."""
    rows = json.loads(head.get(f"/api/v0/{what}?limit=5000&detail=1"))["data"]["result"]["result"]
    return {row.get(key) for row in rows for key in ("name", "class_name", "repr_name") if row.get(key)}


def datasets(head, job):
    """Return names of the datasets of a job, as the dashboard's page of it lists them."""
    answer = json.loads(head.get(f"/api/data/datasets/{head.job(job)['job_id']}"))
    return {each["dataset"] for each in answer["datasets"]}


def test_a_study_shows_its_numbers_and_says_what_it_does(tmp_path):
    seen, actors, groups = {}, set(), set()
    # Ray's processes hand their numbers on every 10 s, and what is newer when they end is lost.
    with ray_head("--num-cpus=2", RAY_metrics_report_interval_ms="1000") as head:
        job = head.submit_detached("rayjobs.run_study", *argv_of(small(tmp_path / "study")))

        def over():
            for sample, value in scraped(head).items():
                seen[sample] = max(value, seen.get(sample, value))
            actors.update(names(head, "actors"))
            groups.update(names(head, "placement_groups"))
            return head.status(job) in ("SUCCEEDED", "FAILED")

        wait_until(over, 400, lambda: head.logs(job)[-3000:])
        assert head.status(job) == "SUCCEEDED", head.logs(job)[-4000:]
        tasks, sets = names(head, "tasks"), datasets(head, job)
        progress = head.job(job)["metadata"]["progress"]
    values = {name: {tuple(dict(labels).values()): value for (found, labels), value in seen.items() if found == name} for name, _ in seen}  # fmt: skip
    rows = {labels: value for (name, labels), value in seen.items() if name == "synthscale_rows_total"}
    manifest = json.loads((tmp_path / "study/synthetic/rephrased/manifest.json").read_text())
    for verdict in ("kept", "rejected", "quarantined"):
        found = sum(value for labels, value in rows.items() if dict(labels)["verdict"] == verdict)
        assert found == manifest[verdict], (verdict, rows)
    assert sum(values["synthscale_accepted_tokens_total"].values()) == manifest["accepted_tokens"]
    assert max(values["synthscale_accepted_tokens_per_second"].values()) > 0
    assert max(values["synthscale_parts_done"].values()) == max(values["synthscale_parts"].values()) == 4
    assert max(values["synthscale_engine_requests"].values()) > 0
    assert max(values["synthscale_lanes"].values()) == 1
    assert {dict(labels)["status"] for (name, labels) in seen if name == "synthscale_runs_total"} == {
        "complete"
    }
    records = [json.loads(path.read_text()) for path in (tmp_path / "study").glob("runs/*/record.json")]
    losses = {
        dict(labels)["run"]: value
        for (name, labels), value in seen.items()
        if name == "synthscale_run_loss_nats_per_token"
    }
    expected = {record["run_id"]: record["final"]["loss_nats_per_token"] for record in records}
    assert len(losses) >= 4, "those of the grid at the least"
    assert losses == pytest.approx({run: expected[run] for run in losses})
    assert {
        "synthscale_run_queue",
        "synthscale_run_tokens",
        "synthscale_trials_total",
        "synthscale_step_done",
    } <= values.keys()
    assert progress.startswith("search_mixture: 4/4 trials, 100 %")
    for pattern in (r"build_corpus: .+ \d+", r"pack_tokens: hq part-00000-of-\d+", r"pack_tokens: tokenizer"):
        assert any(re.fullmatch(pattern, name) for name in tasks), (pattern, sorted(tasks))
    for pattern in (
        r".*RephrasePart.*",
        r"OpenParts",
        r"run queue of pretrain_models-grid-lanes-\w+",
        r"RayTrainWorker.*",
        r"trial of search_mixture share",
    ):
        assert any(re.fullmatch(pattern, name) for name in actors), (pattern, sorted(actors))
    assert [re.sub(r"_[0-9A-Za-z]{22}_\d+$", "", name) for name in sets] == ["rephrase_corpus rephrased"], (
        sets
    )
    assert groups == set(), (
        "those of ours have names, and none was asked for here; Ray Train's and Tune's have none"
    )
