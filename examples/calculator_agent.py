"""An agent as people write them, trained on what the model answers it: ``+experiment=quickstart-agent``.

It knows nothing of areal-mega but the address and key it is given: OpenAI's client, a tool, a loop.
"""

import json

from openai import AsyncOpenAI

CALCULATOR = {
    "type": "function",
    "function": {
        "name": "calculator",
        "description": "Calculates a product.",
        "parameters": {
            "type": "object",
            "properties": {"expression": {"type": "string", "description": "such as 347 * 82"}},
            "required": ["expression"],
        },
    },
}


def calculate(arguments: str) -> str:
    """The product that the model asked for, or what is wrong with what it asked."""
    try:
        left, right = json.loads(arguments)["expression"].split("*")
        return str(int(left) * int(right))
    except (ValueError, KeyError, TypeError, AttributeError):
        return "error: expected NUMBER * NUMBER"


async def answer(prompt, endpoint):
    """One problem: at most two calls, then an answer. Returns how well it went, from 0 to 1."""
    messages = [{"role": "user", "content": prompt.metadata["question"]}]
    async with AsyncOpenAI(base_url=endpoint.base_url, api_key=endpoint.api_key) as client:
        for _ in range(3):
            completion = await client.chat.completions.create(
                model=endpoint.model, messages=messages, tools=[CALCULATOR]
            )
            said = completion.choices[0].message
            if not said.tool_calls:
                return float((said.content or "").strip() == prompt.answer)
            messages.append(said.model_dump(exclude_none=True))
            for call in said.tool_calls:
                result = calculate(call.function.arguments)
                messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    return 0.0
