"""Chat templates of the shapes that models have, and a tokenizer to try them with."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHATML = """
{%- if tools %}<|im_start|>system
{% for t in tools %}{{ t.function.name }}({{ t.function.parameters.required | join }}){% endfor %} <tool_call><|im_end|>
{% endif %}
{%- for m in messages %}
    {%- if m.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}
        {{- '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif %}
    {%- else %}{{ '<|im_start|>' + m.role + '\\n' + (m.content or '') }}
        {%- for c in m.tool_calls or [] %}{{ '<tool_call>' + (c.function | tojson) + '</tool_call>' }}{% endfor %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

# Thoughts are shown in the last turn only, where an empty one is even added.
THINKING = """
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}
    {%- if m.role == 'assistant' and loop.last and '</think>' not in m.content %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
    {%- if m.role == 'assistant' and not loop.last %}{{ m.content.split('</think>')[-1].lstrip() }}
    {%- else %}{{ m.content }}{% endif %}{{ '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

HEADERS = """{{ '<|begin|>' }}
{%- for m in messages %}{{ '<|head|>' + m.role + '<|/head|>\\n\\n' + m.content | trim + '<|eot|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|head|>assistant<|/head|>\\n\\n' }}{% endif %}"""

# The answer stands between the closing and the end, with a space before it; nothing announces it.
INST = """{{ '<s>' }}
{%- for m in messages %}
    {%- if m.role == 'assistant' %}{{ ' ' + m.content | trim + '</s>' }}
    {%- elif m.role == 'tool' %}{{ '[TOOL_RESULTS]' + m.content + '[/TOOL_RESULTS]' }}
    {%- else %}{{ '[INST] ' + m.content + ' [/INST]' }}{% endif %}
{%- endfor %}"""

# A line break ends every turn, and the model's role has another name.
TURNS = """{{ '<s>' }}
{%- for m in messages %}{{ '<|turn|>' + ('model' if m.role == 'assistant' else m.role) + '\\n' }}
    {{- m.content | trim + '<|/turn|>\\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|turn|>model\\n' }}{% endif %}"""

# Roles are tokens, only the model's turn has an end.
MARKS = """{{ '<s>' }}
{%- for m in messages %}
    {%- if m.role == 'assistant' %}{{ '<|A|>' + m.content + '</s>' }}{% else %}{{ '<|U|>' + m.content }}{% endif %}
{%- endfor %}{% if add_generation_prompt %}{{ '<|A|>' }}{% endif %}"""

# name: the template, and the token by which the model ends its turn.
TEMPLATES = {
    "chatml": (CHATML, "<|im_end|>"),
    "headers": (HEADERS, "<|eot|>"),
    "inst": (INST, "</s>"),
    "turns": (TURNS, "<|/turn|>"),
    "marks": (MARKS, "</s>"),
}
SPECIAL = [
    "<s>", "</s>", "<|im_end|>", "<|im_start|>", "<|begin|>", "<|head|>", "<|/head|>", "<|eot|>", "<|turn|>",
    "<|/turn|>", "<|A|>", "<|U|>", "<|endoftext|>", "[TOOL_RESULTS]", "[/TOOL_RESULTS]",
]  # fmt: skip


def tokenizer_of(template: str | None, prefix_space: bool = False) -> PreTrainedTokenizerFast:
    """One token per character, beside the special ones; prefix_space: a text gets a space before it, as
    sentencepiece's do."""
    characters = [*SPECIAL, *map(chr, range(32, 127)), "\n", "▁"]
    words = Tokenizer(models.WordLevel({c: i for i, c in enumerate(characters)}, unk_token="?"))
    if prefix_space:
        words.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Metaspace(prepend_scheme="always", split=False), pre_tokenizers.Split("", "isolated")]
        )
        words.decoder = decoders.Sequence([decoders.Fuse(), decoders.Replace("▁", " ")])
    else:
        words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
        words.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>")
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    tokenizer.chat_template = template
    return tokenizer
