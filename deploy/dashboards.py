"""Start Prometheus and Grafana on loopback with what stands beside this file, for the Ray cluster of this machine.

`make dashboards`, on the head node (or on the machine of a local Ray with `--dashboard`). Installs nothing: says what is
missing. Ends both on Ctrl-C and on SIGTERM. Standard library only.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
DISCOVERY = Path("/tmp/ray/prom_metrics_service_discovery.json")
PROMETHEUS, GRAFANA = "127.0.0.1:9090", "127.0.0.1:3000"
WHERE = {
    "prometheus": "https://prometheus.io/download (or the package `prometheus` of your distribution)",
    "grafana": "https://grafana.com/grafana/download (the open-source edition)",
}


def main() -> int:
    """Start what is there; return 2 when nothing can be started."""
    prometheus, grafana = shutil.which("prometheus"), grafana_command()
    for name, found in (("prometheus", prometheus), ("grafana", grafana)):
        if not found:
            print(f"dashboards: {name} is not on the PATH: get it from {WHERE[name]}.", file=sys.stderr)
    if not prometheus:
        return 2
    if not DISCOVERY.exists():
        print(
            f"dashboards: {DISCOVERY} is not there yet: Ray's head node writes it; waiting.", file=sys.stderr
        )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with tempfile.TemporaryDirectory(prefix="synthscale-dashboards-") as data:
        started = [subprocess.Popen(prometheus_arguments(prometheus, data))]
        print(f"dashboards: Prometheus at http://{PROMETHEUS}", file=sys.stderr)
        if grafana:
            started.append(subprocess.Popen(grafana, env=os.environ | grafana_settings(data), cwd=data))
            print(f"dashboards: Grafana at http://{GRAFANA}/d/synthscale", file=sys.stderr)
        try:
            return started[0].wait()
        except KeyboardInterrupt:
            return 0
        finally:
            for process in started:
                process.terminate()
            for process in started:
                process.wait()


def prometheus_arguments(prometheus: str, data: str) -> list[str]:
    """Return the command line of Prometheus."""
    return [
        prometheus, f"--config.file={HERE / 'prometheus.yml'}", f"--storage.tsdb.path={data}/prometheus",
        f"--web.listen-address={PROMETHEUS}",
    ]  # fmt: skip


def grafana_command() -> list[str] | None:
    """Return the command line of Grafana; its name changed with version 10."""
    for name, words in (("grafana", ["server"]), ("grafana-server", [])):
        if found := shutil.which(name):
            home = next((h for h in ("/usr/share/grafana", str(Path(found).resolve().parent.parent)) if (Path(h) / "public").is_dir()), None)  # fmt: skip
            return [found, *words, *(["--homepath", home] if home else [])]
    return None


def grafana_settings(data: str) -> dict[str, str]:
    """Return Grafana's settings: on loopback, read by anybody who can reach that, written by nobody."""
    address, port = GRAFANA.split(":")
    return {
        "GF_SERVER_HTTP_ADDR": address, "GF_SERVER_HTTP_PORT": port, "GF_PATHS_DATA": f"{data}/grafana",
        "GF_PATHS_PROVISIONING": str(HERE / "grafana/provisioning"),
        "SYNTHSCALE_DASHBOARDS": str(HERE / "grafana/dashboards"),
        # Nobody logs in: Grafana is born with the account admin/admin, on a machine that others may share.
        "GF_AUTH_DISABLE_LOGIN_FORM": "true", "GF_AUTH_BASIC_ENABLED": "false",
        "GF_AUTH_ANONYMOUS_ENABLED": "true", "GF_AUTH_ANONYMOUS_ORG_ROLE": "Viewer", "GF_SECURITY_ALLOW_EMBEDDING": "true",
        "GF_ANALYTICS_REPORTING_ENABLED": "false", "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
    }  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
