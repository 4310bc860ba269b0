"""One real SGLang server on a tiny model, shared by all tests of a session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from models import VOCAB, save_tiny_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from areal_mega.bench.full_gather import FullWeightTransport
from areal_mega.config.options import RolloutOptions
from areal_mega.rollout.local_engines import LocalEngines
from areal_mega.rollout.sampler import Sampler
from areal_mega.rollout.server import SGLangServer

MAX_NEW_TOKENS = 12
EOS = 2


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engine") / "model"


@pytest.fixture(scope="session")
def start_model(model_folder: Path) -> PreTrainedModel:
    """The weights the engine starts with, and goes back to for every test that changes them."""
    return save_tiny_model(model_folder, "qwen3")


@pytest.fixture(scope="session")
def options() -> RolloutOptions:
    return RolloutOptions(
        prompts_per_step=8,
        samples_per_prompt=4,
        max_prompt_tokens=24,
        max_new_tokens=MAX_NEW_TOKENS,
        start_timeout=240,
        request_timeout=60,
        # Room for conversations, and for many long responses at the same time.
        sglang={"context_length": 400, "max_total_tokens": 16384, "max_running_requests": 64},
    )


@pytest.fixture(scope="session")
def server(model_folder: Path, start_model: PreTrainedModel, options: RolloutOptions) -> Iterator[SGLangServer]:
    log = model_folder.parent / "engine.log"
    with SGLangServer(str(model_folder), options, dtype="float32", device="cpu", seed=1, log_path=log) as running:
        yield running


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Token i is the character 0x4e00 + i."""
    words = Tokenizer(models.WordLevel({chr(0x4E00 + i): i for i in range(VOCAB)}, unk_token=chr(0x4E00)))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    words.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token=chr(0x4E00 + EOS))


@pytest.fixture(scope="session")
def sampler(server: SGLangServer, tokenizer: PreTrainedTokenizerFast, options: RolloutOptions) -> Sampler:
    return Sampler(LocalEngines([server]), tokenizer, options, [EOS])


@pytest.fixture(scope="session")
def transport(server: SGLangServer) -> FullWeightTransport:
    return FullWeightTransport(server)
