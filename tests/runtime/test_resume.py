import pytest

from areal_mega.config.errors import UserError
from areal_mega.config.options import SFTOptions
from areal_mega.runtime import resume
from areal_mega.runtime.checkpoint_folders import CheckpointFolders


@pytest.fixture
def options(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)

    def options(**fields):
        made = SFTOptions(experiment="e", output=str(tmp_path / "out"), **fields)
        made.model.path, made.data.train = "model", "train.jsonl"
        return made

    return options


def with_checkpoints(run, *steps):
    for step in steps:
        folders = CheckpointFolders(run)
        folders.publish(folders.begin(step), step, {})
    return run


def test_a_new_run_begins_in_a_new_directory(options):
    first, second = (resume.enter(options()) for _ in range(2))
    assert first != second
    assert resume.point(options(), first) is None


def test_latest_is_the_run_that_was_started_last_or_the_named_one(options):
    named = with_checkpoints(resume.enter(options(run_name="mine")), 2)
    last = with_checkpoints(resume.enter(options()), 4, 6)
    assert resume.enter(options(resume="latest")) == last
    assert resume.point(options(resume="latest"), last) == last / "checkpoints" / "step-00000006"
    assert resume.enter(options(resume="latest", run_name="mine")) == named
    assert (named.parent / "latest").resolve() == named


def test_a_path_names_a_run_or_one_of_its_checkpoints(options):
    run = with_checkpoints(resume.enter(options()), 4, 6)
    chosen = run / "checkpoints" / "step-00000004"
    for path, expected in ((run, "step-00000006"), (chosen, "step-00000004")):
        asked = options(resume=str(path))
        assert resume.enter(asked) == run
        assert resume.point(asked, run).name == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"resume": "latest"}, "has no run that was started last"),
        ({"resume": "latest", "run_name": "gone"}, "has no run gone"),
        ({"resume": "/no/run"}, "neither a run directory with checkpoints"),
    ],
)
def test_a_run_that_does_not_exist(options, fields, message):
    with pytest.raises(UserError, match=message):
        resume.enter(options(**fields))


def test_a_run_without_checkpoints(options):
    run = resume.enter(options())
    with pytest.raises(UserError, match=r"has no checkpoint; it ended before its first one.*checkpoint\.every"):
        resume.point(options(resume="latest"), run)


def test_a_checkpoint_that_does_not_exist(options):
    run = with_checkpoints(resume.enter(options()), 4)
    with pytest.raises(UserError, match="no such checkpoint; the run has: step-00000004"):
        resume.point(options(resume=str(run / "checkpoints" / "step-00000005")), run)


def test_two_names_for_the_run(options):
    run = with_checkpoints(resume.enter(options()), 4)
    with pytest.raises(UserError, match=r"resume=.* goes on in .*, but run_name=other names another"):
        resume.enter(options(resume=str(run), run_name="other"))


@pytest.mark.parametrize("run_id", ["none", "8a4f"])
def test_restarted_ranks_find_their_directory(options, monkeypatch, run_id):
    """Whatever the command line said at first, and also before the first checkpoint."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", run_id)
    run = resume.enter(options(run_name="mine"))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "another")
    resume.enter(options())
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", run_id)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert resume.enter(options(run_name="mine")) == run
    assert resume.point(options(), run) is None
    with_checkpoints(run, 2, 4)
    chosen = options(resume=str(run / "checkpoints" / "step-00000002"))
    assert resume.point(chosen, run) == run / "checkpoints" / "step-00000004"
