"""The server of reward models: the right token's reward whatever the padding, and clear refusals."""

import asyncio

import pytest
import torch
from aiohttp.test_utils import TestClient, TestServer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast, Qwen3Config

from areal_mega.config.errors import UserError
from areal_mega.config.options import ModelOptions, ServeRewardOptions
from areal_mega.rewards.served_model import RewardModel, RewardServer

WORDS = ["<end>", "U", "A", "one", "two", "three"]
TEMPLATE = "{% for m in messages %}{{ 'U ' if m['role'] == 'user' else 'A ' }}{{ m['content'] }} {% endfor %}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("reward")
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, "<end>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", chat_template=TEMPLATE)
    tokenizer.save_pretrained(path)
    config = Qwen3Config(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, num_labels=1, eos_token_id=0, pad_token_id=None, bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(path)
    return str(path)


def options(folder, **more):
    return ServeRewardOptions(model=ModelOptions(path=folder), **more)


def test_rewards_are_those_after_the_last_token_in_any_batch(folder):
    model = RewardModel(options(folder), "cpu")
    sequences = [[1, 3, 2, 4, 0], [1, 3, 2, 0], [1, 3, 2, 4, 5, 5, 5, 0]]
    oracle = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.inference_mode():
        alone = [oracle(torch.tensor([s])).logits.item() for s in sequences]
    assert model.scores(sequences) == pytest.approx(alone, rel=1e-5, abs=1e-6)
    assert len(set(alone)) == 3


def test_a_request_becomes_the_tokens_that_were_trained_on_or_those_of_the_models_own_template(folder):
    model = RewardModel(options(folder), "cpu")
    body = {"prompt": "U one A", "response": "two", "messages": [{"role": "user", "content": "three"}]}
    assert model.tokens(body, chat=False) == [1, 3, 2, 4, 0]
    assert model.tokens(body, chat=True) == [1, 5, 2, 4]


def test_requests_of_the_same_time_are_scored_and_bad_ones_refused(folder):
    asked = options(folder, max_tokens=6, batch=4)
    model = RewardModel(asked, "cpu")

    async def run():
        async with TestClient(TestServer(RewardServer(model, asked).application())) as client:
            bodies = [{"prompt": "one", "response": "two " * (i % 3)} for i in range(9)]
            answers = await asyncio.gather(*(client.post("/", json=body) for body in bodies))
            scores = [(await answer.json())["score"] for answer in answers]
            long = await client.post("/", json={"prompt": "one", "response": "two " * 9})
            empty, broken = await client.post("/", json={"prompt": "one"}), await client.post("/", data="{")
            health = await client.get("/health")
            return bodies, scores, [r.status for r in (long, empty, broken, health)]

    bodies, scores, statuses = asyncio.run(run())
    assert statuses == [413, 400, 400, 200]
    assert scores == pytest.approx([model.scores([model.tokens(b, False)])[0] for b in bodies], rel=1e-5, abs=1e-6)


def test_a_model_without_a_reward_head_is_refused(tmp_path, folder):
    from models import save_tiny_model
    from transformers import AutoTokenizer

    save_tiny_model(tmp_path, "qwen3")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"a Qwen3ForCausalLM .*; a reward model is a sequence classifier of one label"):
        RewardModel(options(str(tmp_path)), "cpu")
