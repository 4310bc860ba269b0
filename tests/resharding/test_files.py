"""Messages as files: what is read is what was written, and a file that is not whole is refused."""

import resource

import pytest
import torch

from areal_mega.resharding import files
from areal_mega.resharding.delta import encode, whole

MESSAGE = torch.arange(1000, dtype=torch.int16).view(torch.uint8)


@pytest.mark.parametrize(
    "encoded",
    [whole(MESSAGE, 2), encode(MESSAGE, MESSAGE.roll(1), 2), encode(MESSAGE, MESSAGE, 2)],
    ids=["whole", "much changed", "nothing changed"],
)
def test_what_is_read_is_what_was_written(tmp_path, encoded):
    path = tmp_path / files.name(1, 0, 2, 3)
    files.reserve(path, MESSAGE.numel())
    files.write(path, encoded)
    assert path.stat().st_size == files.HEADER_BYTES + encoded.payload.numel()
    header, payload = files.read(path)
    assert header == encoded.header
    assert torch.equal(payload, encoded.payload)


@pytest.mark.parametrize("size", [0, 63, 64, 1000])
def test_a_file_that_is_cut_off_is_refused(tmp_path, size):
    path = tmp_path / "message"
    files.reserve(path, MESSAGE.numel())
    files.write(path, whole(MESSAGE, 2))
    with path.open("r+b") as file:
        file.truncate(size)
    with pytest.raises(RuntimeError, match=f"cut off after {size} bytes"):
        files.read(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(RuntimeError, match="missing cannot be read: No such file"):
        files.read(tmp_path / "missing")


def test_room_is_taken_before_anything_is_written(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            files.reserve(tmp_path / "message", 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_mail_is_taken_once(tmp_path):
    mailbox = torch.tensor([1, -(2**63), 2**63 - 1])
    files.write_mail(tmp_path, 4, mailbox)
    assert torch.equal(files.take_mail(tmp_path, 4), mailbox)
    assert not list(tmp_path.iterdir())
