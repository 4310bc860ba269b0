"""Builds the package and its compiled module, areal_mega._C, with CMake."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def tool(name: str) -> str:
    """Path of a build tool: beside the running Python, or else on PATH."""
    path = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if path is None:
        raise SystemExit(f"{name} was not found, and areal_mega._C needs it. The way out: pip install {name}")
    return path


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
            f"-DAREAL_MEGA_CUDA={os.environ.get('AREAL_MEGA_CUDA', 'OFF')}",
            f"-DAREAL_MEGA_CUDA_ARCHS={os.environ.get('AREAL_MEGA_CUDA_ARCHS', '80;90;100')}",
        ]
        cmake = tool("cmake")
        subprocess.run([cmake, "-G", "Ninja", "-S", ROOT, "-B", build, *configure], check=True)
        subprocess.run([cmake, "--build", build], check=True)


setup(
    name="areal-mega",
    version="0.1.0",
    description="Reinforcement learning for large language models: Megatron-Core trains, SGLang generates.",
    license="Apache-2.0",
    python_requires=">=3.11",
    # triton_kernels is also the name of a package that SGLang looks for: ours is only seen inside areal_mega.
    packages=[*find_packages(include=["areal_mega", "areal_mega.*"]), "areal_mega.triton_kernels"],
    package_dir={"areal_mega.triton_kernels": "triton_kernels"},
    ext_modules=[Extension("areal_mega._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
    entry_points={"sglang.srt.platforms": ["areal_mega_cpu = areal_mega.runtime.sglang_platform:activate"]},
)
