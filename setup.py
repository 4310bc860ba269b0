"""Builds the package and its compiled module, areal_mega._C, with CMake."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
CUDA = os.environ.get("AREAL_MEGA_CUDA", "0") == "1"

# Folders beside areal_mega that are only seen inside it. triton_kernels is also the name of a package that SGLang
# looks for; configs and tools are names that anybody may use.
INSIDE = {f"areal_mega.{folder}": folder for folder in ("configs", "tools", "triton_kernels")}


def version() -> str:
    """That of the package; with CUDA kernels it also says of which toolkit: 0.1.0+cu130."""
    (number,) = re.findall(r'^__version__ = "(.+)"$', (ROOT / "areal_mega/__init__.py").read_text(), re.MULTILINE)
    if not CUDA:
        return number
    nvcc = os.environ.get("CUDACXX") or shutil.which("nvcc")
    if nvcc is None:
        raise SystemExit("AREAL_MEGA_CUDA=1 needs nvcc, which is not on PATH. The way out: CUDACXX=/path/to/nvcc")
    said = subprocess.run([nvcc, "--version"], check=True, capture_output=True, text=True).stdout
    (release,) = re.findall(r"release (\d+\.\d+)", said)
    return f"{number}+cu{release.replace('.', '')}"


def requirements(file: str) -> list[str]:
    """The packages that a file in requirements/ names."""
    lines = (ROOT / "requirements" / file).read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def tool(name: str) -> str:
    """Path of a build tool: beside the running Python, or else on PATH."""
    path = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if path is None:
        raise SystemExit(f"{name} was not found, and areal_mega._C needs it. The way out: pip install {name}")
    return path


class BuildFresh(build_py):
    """Copies the Python files; a file of an earlier build that the tree no longer has does not stay behind."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class CMakeBuild(build_ext):
    """Builds the extension with CMake and ninja; objects of earlier builds are used again."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        output = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        configure = [
            f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={output}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DAREAL_MEGA_CUDA={int(CUDA)}",
            f"-DAREAL_MEGA_CUDA_ARCHS={os.environ.get('AREAL_MEGA_CUDA_ARCHS', '80;90;100')}",
        ]
        cmake = tool("cmake")
        subprocess.run([cmake, "-G", "Ninja", "-S", ROOT, "-B", build, *configure], check=True)
        subprocess.run([cmake, "--build", build], check=True)


setup(
    name="areal-mega",
    version=version(),
    description="Reinforcement learning for large language models: Megatron-Core trains, SGLang generates.",
    license="Apache-2.0",
    python_requires=">=3.11",
    # The kernels need torch, of any build, and nothing else; whoever trains asks for the rest: areal-mega[train].
    install_requires=["torch>=2.6"],
    extras_require={"train": requirements("cuda.txt")},
    packages=[*find_packages(include=["areal_mega", "areal_mega.*"]), *INSIDE],
    package_dir=INSIDE,
    package_data={"areal_mega.configs": ["**/*.yaml"]},
    ext_modules=[Extension("areal_mega._C", sources=[])],
    cmdclass={"build_py": BuildFresh, "build_ext": CMakeBuild},
    entry_points={"sglang.srt.platforms": ["areal_mega_cpu = areal_mega.runtime.sglang_platform:activate"]},
)
