"""What a user would write: an environment, agents and a workflow."""

from openai import AsyncOpenAI, OpenAI

from areal_mega.rollout.environment import Step
from areal_mega.rollout.trajectory import Trajectory


class Echo:
    """Repeats what was said, three times; each turn earns its length."""

    def __init__(self, prompt):
        self.turns = 0

    async def step(self, said):
        self.turns += 1
        reply = [{"role": "user", "content": f"{self.turns}:{said[:5]}"}]
        return Step(reply, done=self.turns == 3, reward=len(said) / 100, outcome=0.75 if self.turns == 3 else None)


async def asks_twice(prompt, endpoint):
    async with AsyncOpenAI(base_url=endpoint.base_url, api_key=endpoint.api_key) as client:
        messages = [{"role": "user", "content": "hi"}]
        for question in ("more?", "even more?"):
            answer = await client.chat.completions.create(model=endpoint.model, messages=messages, max_tokens=9)
            messages += [answer.choices[0].message.model_dump(), {"role": "user", "content": question}]
        assert answer.usage.completion_tokens <= 9
    return 1.0


def blocks_and_streams(prompt, endpoint):
    with OpenAI(base_url=endpoint.base_url, api_key=endpoint.api_key) as client:
        assert [model.id for model in client.models.list()] == [endpoint.model]
        parts = client.chat.completions.create(
            model=endpoint.model, messages=[{"role": "user", "content": "hi"}], stream=True, max_tokens=9
        )
        said = "".join(part.choices[0].delta.content or "" for part in parts)
    endpoint.reward_turn(len(said))


def asks_for_another_temperature(prompt, endpoint):
    with OpenAI(base_url=endpoint.base_url, api_key=endpoint.api_key) as client:
        client.chat.completions.create(
            model=endpoint.model, messages=[{"role": "user", "content": "hi"}], temperature=0.1
        )


async def best_of_two(prompt, session):
    """A workflow by itself: two tries in one sample, the second behind a mark."""
    trajectory = Trajectory(prompt)
    trajectory.said(await session.generate(trajectory.tokens, max_new_tokens=4))
    trajectory.seen([7])
    trajectory.said(await session.generate(trajectory.tokens, max_new_tokens=4), reward=0.5)
    return trajectory.sample("two", outcome=0.25)
