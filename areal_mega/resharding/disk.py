"""New weights through files in a folder that the training ranks and the engines share: slower, and always possible.

Each training rank writes the slices that it is the source of, one file for each engine rank; all engines read the same
ones. The room for a whole update is taken before the first engine is told to read: a full disk leaves all engines as
they are.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from areal_mega.config.errors import UserError
from areal_mega.resharding import files
from areal_mega.resharding.deployment import Deployment
from areal_mega.resharding.engine_update import Order
from areal_mega.resharding.outgoing import Outgoing
from areal_mega.resharding.receivers import MAIL_CHECKSUMS, MAIL_NANOSECONDS
from areal_mega.resharding.report import Spent
from areal_mega.resharding.transport import Sums, Transport, TransportError
from areal_mega.runtime.distributed import Topology


class DiskTransport(Transport):
    """folder: where the files are for as long as an update takes, in a folder of the run's own. directory: of the run.
    Other arguments as for `DisaggregatedTransport`.

    Raises:
        UserError: the folder is not there for one of the ranks, or cannot be written.
    """

    name = "disk"

    def __init__(
        self,
        topology: Topology,
        deployment: Deployment,
        weights: Mapping[str, Tensor],
        buffer_bytes: int,
        *,
        folder: Path,
        directory: Path,
        remember: bool = False,
    ) -> None:
        self._topology, self._deployment, self._remember = topology, deployment, remember
        self.outgoing = Outgoing(topology, deployment.one_engine, weights, buffer_bytes)
        own = hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:12]
        self._folder = folder.resolve() / f"weights-{own}"
        self._update = 0
        self._make_folder()

    def _make_folder(self) -> None:
        """Empty: what a run that was killed left there goes. All ranks must see what the main one made."""
        trouble = ""
        if self._topology.is_main:
            try:
                shutil.rmtree(self._folder, ignore_errors=True)
                self._folder.mkdir()
            except OSError as error:
                trouble = f"{error.strerror}"
        self._topology.barrier()
        if not trouble and not self._folder.is_dir():
            trouble = f"rank {self._topology.rank} does not see it"
        if troubles := [there for there in self._topology.gather(trouble) if there]:
            raise UserError(
                f"resharding.transport=disk writes into {self._folder}: {troubles[0]}. Set resharding.folder to an "
                "existing folder that all training ranks can write and all engines can read."
            )

    def connect_orders(self, engines: Sequence[int]) -> dict[int, Order]:
        """The main rank's, for the workers of these engines."""
        return {
            destination: {
                **self.outgoing.connect_order(destination, there := self.outgoing.slots(destination)),
                "transport": self.name,
                "slots": [list(asdict(slot).values()) for slot in there],
                "folder": str(self._folder),
                "planned": self.outgoing.planned(destination),
                "destination": destination,
            }
            for engine in (engines if self._topology.is_main else ())
            for destination in self._deployment.ranks_of(engine)
        }

    def load_order(self, engines: Sequence[int]) -> Order:
        """The number that the files of this attempt have in their names."""
        return {"update": self._update}

    def fill(self, chunk: int, engines: Sequence[int], spent: Spent, *, delta: bool) -> dict[int, str]:
        """Write this rank's files of a chunk.

        Raises:
            TransportError: they cannot be written.
        """
        started = time.perf_counter()
        try:
            if chunk == 0:
                self._begin()
            for file in self._files(chunk - 2):  # which all engines have read
                file.unlink(missing_ok=True)
            packed = self._write(chunk, len(engines), spent, delta=delta)
        except OSError as error:
            self._remove()
            raise TransportError(
                f"rank {self._topology.rank} cannot write the new weights into {self._folder}: {error.strerror}. Make "
                "room there, or set resharding.folder to another folder that trainers and engines share."
            ) from error
        spent.send += time.perf_counter() - started - packed
        spent.pack += packed
        return {}

    def _begin(self) -> None:
        """Away with an attempt that was not read to its end, and room for this one."""
        self._remove()
        self._update += 1
        for chunk in self.outgoing.chunks:
            for file, parcel in zip(self._files(chunk), self.outgoing.parcels[chunk], strict=True):
                files.reserve(file, parcel.nbytes)

    def _write(self, chunk: int, readers: int, spent: Spent, *, delta: bool) -> float:
        """Returns the seconds of packing."""
        packing = 0.0
        for file, parcel in zip(self._files(chunk), self.outgoing.parcels[chunk], strict=True):
            started = time.perf_counter()
            encoded = self.outgoing.encoded(parcel, remember=self._remember, delta=delta)
            packing += time.perf_counter() - started
            spent.count(encoded, parcel.nbytes, readers, delta=delta)
            files.write(file, encoded)
        return packing

    def _files(self, chunk: int) -> list[Path]:
        """This rank's, of a chunk of the attempt under way."""
        if chunk not in self.outgoing.chunks:
            return []
        messages = (parcel.message for parcel in self.outgoing.parcels[chunk])
        return [self._folder / files.name(self._update, chunk, m.source, m.destination) for m in messages]

    def _remove(self) -> None:
        """All of this rank's files."""
        for chunk in self.outgoing.chunks:
            for file in self._files(chunk):
                with suppress(OSError):
                    file.unlink(missing_ok=True)

    def read_mail(self, engines: Sequence[int]) -> tuple[float, Sums]:
        """On the main rank, of the workers of these engines: the longest time of loading, in seconds, and checksums.
        The engines have read all files, which go."""
        self._remove()
        longest = 0.0
        sums: Sums = {}
        for engine in engines if self._topology.is_main else ():
            for destination in self._deployment.ranks_of(engine):
                found = files.take_mail(self._folder, destination).tolist()
                longest = max(longest, found[MAIL_NANOSECONDS] / 1e9)
                names = self.outgoing.tensors(destination)
                sums |= {(destination, name): total for name, total in zip(names, found[MAIL_CHECKSUMS:], strict=True)}
        return longest, sums
