"""Metrics on their way to a file, a terminal and a picture."""

import json

import pytest

from areal_mega.telemetry.journal import Journal
from areal_mega.telemetry.plot import plot_run
from areal_mega.telemetry.progress import Column, ProgressDisplay
from areal_mega.telemetry.timers import PhaseTimers


def test_a_line_is_in_the_file_before_the_run_ends(tmp_path):
    journal = Journal(tmp_path)
    journal.write(1, {"reward": 0.5})
    journal.write(2, {"reward": 0.75, "accuracy": 1})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    journal.close()
    assert lines == journal.rows == [{"step": 1, "reward": 0.5}, {"step": 2, "reward": 0.75, "accuracy": 1.0}]


def test_small_values_keep_their_digits(tmp_path):
    journal = Journal(tmp_path)
    journal.write(1, {"mismatch/mean": 1.23456e-8, "policy/lr": 2.5e-11})
    journal.close()
    assert journal.rows[0]["mismatch/mean"] == pytest.approx(1.23456e-8, rel=1e-4)
    assert journal.rows[0]["policy/lr"] == pytest.approx(2.5e-11, rel=1e-4)


def test_what_json_does_not_have_is_null(tmp_path):
    journal = Journal(tmp_path)
    journal.write(0, {"accuracy": float("nan"), "loss": float("inf")})
    journal.close()
    strict = {"parse_constant": pytest.fail}
    assert json.loads((tmp_path / "metrics.jsonl").read_text(), **strict) == {"step": 0, "accuracy": None, "loss": None}


def test_phases_add_up_and_start_anew():
    timers = PhaseTimers()
    for _ in range(2):
        with timers.phase("train"):
            pass
    with pytest.raises(ArithmeticError), timers.phase("score"):
        raise ArithmeticError
    first = timers.pop()
    assert set(first) == {"time/train", "time/score", "time/step"}
    assert first["time/step"] == pytest.approx(first["time/train"] + first["time/score"])
    assert timers.pop() == {"time/step": 0}


def display_of(steps, enabled=True):
    columns = [Column("reward", "rollout/reward"), Column("entropy", "policy/entropy")]
    return ProgressDisplay("name", steps, columns, enabled=enabled, live=True)


def test_without_a_terminal_a_step_is_a_line(capsys):
    with display_of(1) as display:
        display.step(1, {"rollout/reward": 0.25, "time/train": 1.5})
    assert "step 1/1  reward 0.250  entropy -  (train 1.5s)" in capsys.readouterr().out


def test_other_ranks_show_nothing(capsys):
    with display_of(1, enabled=False) as display:
        display.step(1, {})
        display.say("text")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("text", ["[INST] 1 + 1 [/INST]", "[bold]", ":smile:", "[1, 2]"])
def test_what_a_model_says_is_shown_as_it_is(capsys, text):
    display_of(1).say(text)
    assert capsys.readouterr().out == text + "\n"


def test_panels_with_values_are_drawn(tmp_path):
    rows = [{"step": 1, "a": None}, {"step": 2, "a": 2.0, "b": 3.0}]
    plot_run(tmp_path / "curves.png", rows, [("both", ["a", "b"]), ("none", ["c"])], "title")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_without_steps_has_no_plot(tmp_path):
    plot_run(tmp_path / "curves.png", [], [("both", ["a"])], "title")
    assert not (tmp_path / "curves.png").exists()


def test_a_resumed_journal_drops_what_is_done_over(tmp_path):
    journal = Journal(tmp_path)
    for step in range(5):
        journal.write(step, {"loss": float(step)})
    journal.close()
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 5, "lo')  # the run was killed here
    journal = Journal(tmp_path, resume_step=3)
    journal.write(4, {"loss": 40.0})
    journal.close()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == journal.rows
    assert [(r["step"], r["loss"]) for r in rows] == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]
