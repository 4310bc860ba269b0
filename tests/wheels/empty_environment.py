"""Tries a wheel in environments that have one version of torch and nothing else, far from the source tree.

    python tests/wheels/empty_environment.py WHEEL TORCH [TORCH ...] [--torch-index URL]

For each version: a new environment in a temporary folder; the wheel must add itself alone to it; the example of
docs/wheels.md must run there; then the tests of the kernels and the programs' options, with what they need beside.
TORCH is a version, such as 2.6.0. A build for the CPU is taken where the index has one, otherwise what pip finds,
which may be a CUDA build with its libraries: 6 GB, removed afterwards.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEST_TOOLS = ("pytest", "pytest-timeout", "hypothesis", "numpy", "hydra-core", "pybind11")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("torch", nargs="+")
    parser.add_argument("--torch-index", help="where builds of torch for the CPU are")
    arguments = parser.parse_args()
    for version in arguments.torch:
        with tempfile.TemporaryDirectory(prefix="areal-mega-") as folder:
            try_wheel(Environment(Path(folder)), arguments.wheel.resolve(), version, arguments.torch_index)


def try_wheel(environment: Environment, wheel: Path, torch: str, torch_index: str | None) -> None:
    """Stop the program with an error unless everything in the module's docstring holds."""
    say = f"{wheel.name} with torch {torch}:"
    print(say, "installing torch", flush=True)
    environment.install_torch(torch, torch_index)
    before = environment.packages()
    environment.python("-m", "pip", "install", "-qq", str(wheel))
    expect(environment.packages() - before, {"areal-mega"}, "packages that the wheel brought")
    expect(before - environment.packages(), set(), "packages that the wheel replaced")

    print(say, "using only the kernels", flush=True)
    environment.python("-c", documented_example())
    where = environment.python("-c", "import areal_mega; print(areal_mega.__file__)", capture=True).strip()
    expect(Path(where).is_relative_to(environment.folder), True, f"{where} in the environment")

    print(say, "testing", flush=True)
    lock = ROOT / "requirements" / "cpu.lock"
    environment.python("-m", "pip", "install", "-qq", "--constraint", str(lock), *TEST_TOOLS)
    environment.python("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", str(ROOT / "tests" / "ops"))
    program = ("-m", "areal_mega.tools.train_ppo")
    expect("quickstart " in environment.python(*program, "--list", capture=True), True, "quickstart in --list")
    environment.python(*program, "+experiment=quickstart", "--cfg", "job", capture=True)
    expect(before - environment.packages(), set(), "packages that these tests replaced")


class Environment:
    """A new virtual environment, and an empty folder to work in."""

    def __init__(self, folder: Path):
        self.folder = folder.resolve()
        venv.create(self.folder / "venv", with_pip=True)
        self.interpreter = str(self.folder / "venv/bin/python")
        (self.folder / "work").mkdir()

    def python(self, *arguments: str, capture: bool = False) -> str:
        """Run its Python; what it printed if ``capture``. Stops this program if it fails."""
        foreign = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
        environment = {name: value for name, value in os.environ.items() if name not in foreign}
        command = [self.interpreter, "-P", *arguments]
        done = subprocess.run(
            command, cwd=self.folder / "work", env=environment, text=True, stdout=subprocess.PIPE if capture else None
        )
        if done.returncode:
            sys.exit(f"error: exit status {done.returncode} of {' '.join(command)[:200]}")
        return done.stdout or ""

    def install_torch(self, version: str, index: str | None) -> None:
        """A build for the CPU from the index; where that is out of reach, from wherever pip is set up to look."""
        pip = ("-m", "pip", "install", "-qq", f"torch=={version}")
        first = [self.interpreter, *pip, "--index-url", index, "--retries", "1", "--timeout", "20"]
        if index is None or subprocess.run(first, stderr=subprocess.DEVNULL).returncode:
            self.python(*pip)

    def packages(self) -> set[str]:
        """Names of what is installed, with the version; areal-mega's without."""
        lines = self.python("-m", "pip", "list", "--format=freeze", capture=True).split()
        return {re.sub("^areal-mega==.*", "areal-mega", line) for line in lines}


def documented_example() -> str:
    """The Python code of docs/wheels.md."""
    (code,) = re.findall("```python\n(.*?)```", (ROOT / "docs" / "wheels.md").read_text(), re.DOTALL)
    return code


def expect(found: object, wanted: object, what: str) -> None:
    if found != wanted:
        sys.exit(f"error: {what}: expected {wanted}, found {found}")


if __name__ == "__main__":
    main()
