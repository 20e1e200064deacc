"""What the installer keeps between two runs is used only while it is what the locks ask for."""

import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "requirements/install.py"


def test_a_wheel_of_another_torch_is_not_taken_for_the_one_that_is_wanted(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("install", SCRIPT)
    install = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(install)
    pip = tmp_path / "bin/pip"
    pip.parent.mkdir()
    pip.write_text(f"#!/bin/sh\necho $* >> {tmp_path}/asked\n")
    pip.chmod(0o755)
    monkeypatch.setattr(install, "TOOLS", tmp_path)
    (tmp_path / "wheels").mkdir()
    wanted = install.CPU_TORCH.replace("==", "-")
    (tmp_path / "wheels/torch-2.0.0+cpu-cp311-cp311-linux_x86_64.whl").touch()
    install.fetch_cpu_torch()
    assert install.CPU_TORCH in (tmp_path / "asked").read_text()
    (tmp_path / "asked").unlink()
    (tmp_path / f"wheels/{wanted}-cp311-cp311-manylinux_2_28_x86_64.whl").touch()
    install.fetch_cpu_torch()
    assert not (tmp_path / "asked").exists()
