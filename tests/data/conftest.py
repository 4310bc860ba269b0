import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

TEMPLATE = "{% for m in messages %}U {{ m['content'] }} {% endfor %}{% if add_generation_prompt %}A {% endif %}"


@pytest.fixture(scope="session")
def tokenizer():
    """Knows a few words, and has a chat template."""
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["?", "<e>", "U", "A", "one", "two"])}, "?"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<e>", unk_token="?", chat_template=TEMPLATE)


@pytest.fixture
def write(tmp_path):
    """Writes lines, or objects as JSON, and gives the path."""

    def write(*lines):
        path = tmp_path / "data.jsonl"
        path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))
        return str(path)

    return write
