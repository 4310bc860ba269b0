"""What a wheel holds, what it needs, and that its programs run without the source tree."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from wheels.empty_environment import documented_example

from areal_mega.config.command_line import list_algorithms, list_experiments

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"areal_mega": "areal_mega", **{f: f"areal_mega/{f}" for f in ("configs", "tools", "triton_kernels")}}
COMPILED = f"areal_mega/_C{sysconfig.get_config_var('EXT_SUFFIX')}"
# Every Linux with the wheel's glibc has these, but for libgomp, which comes with torch.
SYSTEM = {"libgomp", "libstdc++", "libgcc_s", "libm", "libc", "libpthread", "libdl", "librt", "ld-linux-x86-64"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree, built after a build that had one more module; compiled objects are used again."""
    earlier = ROOT / "build" / f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}" / "areal_mega"
    earlier.mkdir(parents=True, exist_ok=True)
    (earlier / "removed_since.py").touch()
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-P", "-m", "pip", "wheel", "-qq", "--no-deps", "--no-build-isolation", "-w", folder, ROOT]
    subprocess.run(pip, check=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def information(unpacked: Path, file: str) -> str:
    (folder,) = unpacked.glob("areal_mega-*.dist-info")
    return (folder / file).read_text()


def run_from(unpacked: Path, cwd: Path, *arguments: str) -> str:
    """Output of Python with the unpacked wheel's packages before all others."""
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    command = [sys.executable, "-P", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, check=True, capture_output=True, text=True).stdout


def test_holds_the_packages_of_the_tree_and_nothing_else(wheel: Path) -> None:
    names = [name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")]
    wanted = {COMPILED}
    for folder, inside in FOLDERS.items():
        files = [file for file in (ROOT / folder).rglob("*") if file.suffix in (".py", ".pyi", ".yaml")]
        wanted |= {f"{inside}/{file.relative_to(ROOT / folder)}" for file in files}
    assert {name for name in names if ".dist-info/" not in name} == wanted
    assert "areal_mega/configs/experiment/quickstart.yaml" in wanted
    assert "areal_mega/tools/train_ppo.py" in wanted


def test_offers_no_top_level_triton_kernels(unpacked: Path) -> None:
    assert information(unpacked, "top_level.txt").split() == ["areal_mega"]
    assert {folder.name.partition("-")[0] for folder in unpacked.iterdir()} == {"areal_mega"}


def test_sglang_finds_the_platform(unpacked: Path) -> None:
    assert "[sglang.srt.platforms]\nareal_mega_cpu = " in information(unpacked, "entry_points.txt")


def test_kernels_need_torch_and_training_what_the_cuda_environment_has(unpacked: Path) -> None:
    metadata: Message = Parser().parsestr(information(unpacked, "METADATA"))
    needs = metadata.get_all("Requires-Dist", [])
    assert [need for need in needs if "extra ==" not in need] == ["torch>=2.6"]
    lines = (ROOT / "requirements" / "cuda.txt").read_text().splitlines()
    packages = {re.split("[=>[]", line)[0] for line in lines if not line.startswith("#")}
    assert {re.split("[=>[;]", need)[0] for need in needs if 'extra == "train"' in need} == packages


def test_version_says_which_cuda_toolkit_the_kernels_are_of(unpacked: Path) -> None:
    version = re.findall("^Version: (.*)$", information(unpacked, "METADATA"), re.MULTILINE)[0]
    with_cuda = os.environ.get("AREAL_MEGA_CUDA") == "1"
    assert re.fullmatch(r"\d+\.\d+\.\d+" + (r"\+cu\d+" if with_cuda else ""), version)


def test_compiled_module_needs_nothing_but_the_system(unpacked: Path) -> None:
    command = ["readelf", "--dynamic", unpacked / COMPILED]
    dynamic = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert {name.split(".so")[0] for name in re.findall(r"NEEDED.*\[(.*)\]", dynamic)} <= SYSTEM
    assert "RUNPATH" not in dynamic and "RPATH" not in dynamic


def test_programs_run_without_the_source_tree(unpacked: Path, tmp_path: Path) -> None:
    code = "import areal_mega.tools.train_ppo as program; print(program.__file__)"
    assert run_from(unpacked, tmp_path, "-c", code).strip() == str(unpacked / "areal_mega/tools/train_ppo.py")
    listed = run_from(unpacked, tmp_path, "-m", "areal_mega.tools.train_ppo", "--list")
    assert listed.strip() == f"{list_experiments()}\n\n{list_algorithms()}"
    program = ("areal_mega.tools.train_ppo", "+experiment=quickstart", "--cfg", "job")
    under_torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", *program)
    assert run_from(unpacked, tmp_path, *under_torchrun).startswith("experiment: quickstart\n")


def test_documented_example_runs(unpacked: Path, tmp_path: Path) -> None:
    printed = run_from(unpacked, tmp_path, "-c", documented_example()).split()
    assert printed[0] == "loss" and abs(float(printed[1])) < 100
