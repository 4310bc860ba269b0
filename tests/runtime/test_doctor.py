import json
import subprocess
import sys

import pytest

from areal_mega.runtime import doctor, extensions


def run(*arguments):
    return subprocess.run([sys.executable, "-P", "tools/doctor.py", *arguments], capture_output=True, text=True)


def test_the_report_names_everything_and_what_it_gives(tmp_path):
    result = run("--json", str(tmp_path / "doctor.json"))
    assert result.returncode == 0, result.stdout + result.stderr
    findings = {f["name"]: f for f in json.loads((tmp_path / "doctor.json").read_text())}
    assert findings["megatron-core"]["there"] and findings["megatron-core"]["found"][0].isdigit()
    names = {
        "torch",
        "sglang",
        "TransformerEngine",
        "Apex",
        "flash-attn",
        "C++ compiler",
        "shared memory",
        "loopback ports",
    }
    assert names <= findings.keys()
    for name, finding in findings.items():
        assert name in result.stdout and finding["gives"] in result.stdout


def test_what_is_needed_and_missing_is_an_error(monkeypatch, capsys):
    missing = [doctor.Finding("sglang", False, "not installed", "generation", needed=True)]
    namespace: dict = {"__name__": "doctor"}
    with open("tools/doctor.py") as file:
        exec(compile(file.read(), "doctor", "exec"), namespace)
    namespace["examine"] = lambda: missing
    monkeypatch.setattr(sys, "argv", ["doctor.py"])
    assert namespace["main"]() == 1
    assert "Needed and not found: sglang" in capsys.readouterr().out


@pytest.mark.parametrize(("on_cpu", "gpu", "package", "used"), [
    (False, True, True, True), (True, True, True, False), (False, False, True, False), (False, True, False, False),
])  # fmt: skip
def test_transformer_engine_is_used_where_it_and_a_gpu_are(monkeypatch, on_cpu, gpu, package, used):
    monkeypatch.setattr(extensions.cpu, "enabled", lambda: on_cpu)
    monkeypatch.setattr(extensions.torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(extensions, "installed", lambda name: package)
    assert extensions.transformer_engine.__wrapped__() is used
