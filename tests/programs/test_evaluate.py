import json
import os
import signal

import pytest

pytestmark = [pytest.mark.engine]


def test_a_killed_evaluation_goes_on(start, model_folder, data_file, tmp_path):
    output = tmp_path / "out"
    arguments = [
        "tools/evaluate.py", f"model.path={model_folder}", f"benchmarks=[{data_file}]", "reward.name=exact_match",
        f"output={output}", "rollout.samples_per_prompt=4", "rollout.max_prompt_tokens=8", "rollout.max_new_tokens=6",
        "rollout.prompts_per_step=2", "rollout.temperature=1", "rollout.top_p=1",
    ]  # fmt: skip
    answers = output / "answers.jsonl"

    killed = start(*arguments, ranks=None)
    killed.wait_for(lambda: answers.exists() and answers.stat().st_size > 0)
    os.kill(killed.process.pid, signal.SIGKILL)
    killed.wait()
    killed.assert_nothing_left()
    whole = answers.read_bytes().rpartition(b"\n")[0].splitlines()
    assert 0 < len(whole) < 256 and not (output / "results.json").exists()

    program = start(*arguments, ranks=None)
    assert program.wait() == 0, program.output
    program.assert_nothing_left()
    assert answers.read_bytes().splitlines()[: len(whole)] == whole
    kept = [json.loads(line) for line in answers.read_text().splitlines()]
    result = json.loads((output / "results.json").read_text())[str(data_file)]
    assert (len(kept), result["n_problems"], result["n_samples"]) == (256, 64, 4)
    assert result["pass_at_1"] == pytest.approx(sum(a["correct"] for a in kept) / 256)
    assert result["mean_length"] == pytest.approx(sum(a["length"] for a in kept) / 256)
    assert result["truncated"] == pytest.approx(sum(a["truncated"] for a in kept) / 256)
    assert (output / "results.png").stat().st_size > 10_000

    # All answers are there: no engine is started for other questions about them.
    (output / "engine-0.log").unlink()
    program = start(*arguments, "pass_at=[3]", ranks=None)
    assert program.wait() == 0, program.output
    assert not (output / "engine-0.log").exists()
    assert set(json.loads((output / "results.json").read_text())[str(data_file)]["pass_at_k"]) == {"3"}
