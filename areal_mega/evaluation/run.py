"""An evaluation: one model, served once, and the benchmarks one after another."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from areal_mega.config.checks import resolve_device
from areal_mega.config.options import EvaluateOptions
from areal_mega.data import Prompt, Sample
from areal_mega.data.tokenizer import load_tokenizer, stop_tokens
from areal_mega.evaluation.answers import Answer, AnswerFile, problem_key
from areal_mega.evaluation.benchmarks import Problems, read_problems, vote
from areal_mega.evaluation.results import Result, plot, powers_of_two, result_of, table, write_results
from areal_mega.rewards import judge
from areal_mega.rollout.local_engines import LocalEngines
from areal_mega.rollout.sampler import Sampler
from areal_mega.rollout.server import SGLangServer
from areal_mega.telemetry.progress import Column, ProgressDisplay

# The engine has the GPU to itself.
GPU_MEMORY_FRACTION = 0.85
COLUMNS = [
    Column("pass@1", "accuracy"),
    Column("tokens", "length", "{:.0f}"),
    Column("truncated", "truncated"),
]


def evaluate(options: EvaluateOptions, cuda: bool) -> dict[str, Result]:
    """The results by benchmark; they are in the output folder, too, with all answers.

    Raises:
        UserError: a benchmark, the model or an option cannot be used.
    """
    model = Path(options.model.path)
    output = Path(options.output or Path("outputs/evaluation") / model.resolve().name)
    tokenizer = load_tokenizer(options.model.path)
    answers = AnswerFile(output, options)
    (output / "options.yaml").write_text(yaml.safe_dump(asdict(options), sort_keys=False))
    benchmarks = [read_problems(name, options, tokenizer, output) for name in dict.fromkeys(options.benchmarks)]
    Evaluation(options, output, answers, resolve_device(options.runtime.device, cuda), tokenizer).answer(benchmarks)
    answers.close()
    results = {b.name: _result(b, answers, options) for b in benchmarks}
    write_results(output / "results.json", results)
    title = f"{model.name}, temperature {options.rollout.temperature:g}"
    plot(output / "results.png", results, title)
    console = Console() if sys.stdout.isatty() else Console(width=140)
    console.print(table(results, options.confidence, title))
    console.print(f"{output}: results.json, results.png, answers.jsonl", markup=False)
    return results


class Evaluation:
    """Asks for the answers that are missing. The engines are started when the first one is."""

    def __init__(
        self,
        options: EvaluateOptions,
        output: Path,
        answers: AnswerFile,
        device: str,
        tokenizer: Any,
        title: str = "evaluation",
    ) -> None:
        self.options, self.output, self.answers = options, output, answers
        self.device, self.tokenizer, self.title = device, tokenizer, title

    def answer(self, benchmarks: Sequence[Problems]) -> None:
        """Afterwards every problem has its answers."""
        wanted = [(b, key, prompt) for b in benchmarks for key, prompt in _keyed(b.prompts)]
        missing = [w for w in wanted if self._missing(w[0].name, w[1])]
        if not missing:
            return
        with ExitStack() as stack:
            sampler = self._sampler(stack)
            display = stack.enter_context(ProgressDisplay(self.title, len(wanted), COLUMNS, enabled=True, live=True))
            done = len(wanted) - len(missing)
            if done:
                display.say(f"{done} of {len(wanted)} problems have their answers already")
            for benchmark in benchmarks:
                mine = [(key, prompt) for b, key, prompt in missing if b is benchmark]
                if mine:
                    display.say(f"{benchmark.name}: {len(mine)} problems, {self._samples} answers each")
                for batch in self._batches(benchmark.name, mine):
                    done += len(batch)
                    display.step(done, self._ask(sampler, benchmark, batch))

    @property
    def _samples(self) -> int:
        return self.options.rollout.samples_per_prompt

    def _missing(self, benchmark: str, key: str) -> int:
        return max(0, self._samples - len(self.answers.of(benchmark, key)))

    def _batches(self, benchmark: str, problems: list[tuple[str, Prompt]]) -> list[list[tuple[str, Prompt]]]:
        """Problems that lack as many answers, a batch at a time."""
        size = self.options.rollout.prompts_per_step
        by_missing: dict[int, list[tuple[str, Prompt]]] = {}
        for key, prompt in problems:
            by_missing.setdefault(self._missing(benchmark, key), []).append((key, prompt))
        return [same[i : i + size] for same in by_missing.values() for i in range(0, len(same), size)]

    def _ask(self, sampler: Sampler, benchmark: Problems, batch: list[tuple[str, Prompt]]) -> dict[str, float]:
        """Answers of a batch, judged and kept; their means."""
        keys, prompts = zip(*batch, strict=True)
        rollout = self.options.rollout
        samples = sampler.generate(
            prompts, self._missing(benchmark.name, keys[0]), rollout.temperature, self.options.seed
        )
        judge(samples, benchmark.reward)
        answers = [_answer(benchmark, keys[sample.group], sample) for sample in samples]
        self.answers.add(answers)
        return {
            "accuracy": sum(a.correct for a in answers) / len(answers),
            "length": sum(a.length for a in answers) / len(answers),
            "truncated": sum(a.truncated for a in answers) / len(answers),
        }

    def _sampler(self, stack: ExitStack) -> Sampler:
        """Engines that end with ``stack``. After a restart they draw other samples than those that are there."""
        o, rollout = self.options, self.options.rollout
        if self.device != "cpu":
            rollout = replace(rollout, sglang={"mem_fraction_static": GPU_MEMORY_FRACTION, **rollout.sglang})
        engines = []
        for number in range(rollout.engines):
            devices = range(number * rollout.tensor, (number + 1) * rollout.tensor)
            engine = SGLangServer(
                o.model.path,
                rollout,
                dtype=o.model.dtype,
                device=self.device,
                seed=o.seed + number + 1009 * len(self.answers),
                log_path=self.output / f"engine-{number}.log",
                devices=None if self.device == "cpu" else devices,
            )
            stack.callback(engine.close)
            engines.append(engine)
        stop = stop_tokens(o.model.path, self.tokenizer)
        return Sampler(LocalEngines(engines), self.tokenizer, rollout, stop)


def _keyed(prompts: Sequence[Prompt]) -> list[tuple[str, Prompt]]:
    return [(problem_key(number, prompt), prompt) for number, prompt in enumerate(prompts)]


def _answer(benchmark: Problems, key: str, sample: Sample) -> Answer:
    return Answer(
        benchmark=benchmark.name,
        problem=key,
        response=sample.text,
        correct=sample.correct,
        length=sample.response_length,
        truncated=sample.truncated,
        failed=bool(sample.reward_parts["failed"]),
        vote=vote(sample.text, sample.prompt, benchmark.reward.name),
    )


def _result(benchmark: Problems, answers: AnswerFile, options: EvaluateOptions) -> Result:
    samples = options.rollout.samples_per_prompt
    problems = [answers.of(benchmark.name, key)[:samples] for key, _ in _keyed(benchmark.prompts)]
    return result_of(problems, options.pass_at or powers_of_two(samples), options.confidence)
