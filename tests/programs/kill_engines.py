"""tools/train_ppo.py, whose main rank kills engines while they generate and writes down what comes of it.

KILLS in the environment: [[batch, [engines]], ...], which are killed shortly after they were asked for that batch, the
first being 0; or a number: every so many seconds one of those that serve is killed, if any does. ``seen.json`` in the
run directory: the samples of each batch, and what was killed when.
"""

import json
import os
import random
import signal
import threading
import time

import psutil

from areal_mega.rollout.local_engines import address_of
from areal_mega.trainers.launch import launch

MOMENT = 0.3  # seconds after a batch was asked for: requests are under way


class Witness:
    """What was seen of a run."""

    def __init__(self, directory):
        self.path, self.batches, self.killed, self.began = directory / "seen.json", [], [], time.monotonic()

    def note(self, generation, batch):
        samples = [[s.prompt.id, s.group, versions_of(s), sum(s.loss_mask)] for s in batch.samples]
        place = [batch.place.position, *batch.place.pending]
        self.batches.append(
            {"version": generation.version, "samples": samples, "place": place, "metrics": batch.metrics}
        )
        self.path.write_text(json.dumps({"batches": self.batches, "killed": self.killed}))

    def kill(self, engines, number):
        """As the kernel would, for want of memory: the engine's processes, not their guard."""
        self.killed.append([round(time.monotonic() - self.began, 1), number, engines[number].starts])
        for process in psutil.Process(engines[number]._guard.pid).children(recursive=True):
            os.kill(process.pid, signal.SIGKILL)


def versions_of(sample):
    return sorted({v for v, generated in zip(sample.versions, sample.loss_mask, strict=True) if generated})


def those_that_serve(generation):
    given_out = generation._local.addresses
    return [n for n, engine in enumerate(generation.engines) if given_out[n] == address_of(engine)]


def run(options, topology, directory):
    from areal_mega.trainers import ppo
    from areal_mega.trainers.generation import Generation

    kills = json.loads(os.environ["KILLS"])
    witness = Witness(directory)

    class Watched(Generation):
        def next_batch(self):
            if isinstance(kills, list):
                for number in dict(kills).get(len(witness.batches), ()):
                    threading.Timer(MOMENT, witness.kill, (self.engines, number)).start()
            elif not witness.batches:
                threading.Thread(target=now_and_then, args=(self,), daemon=True).start()
            batch = super().next_batch()
            witness.note(self, batch)
            return batch

    def now_and_then(generation):
        while True:
            time.sleep(kills)
            if serving := those_that_serve(generation):
                witness.kill(generation.engines, random.choice(serving))

    ppo.Generation = Watched
    ppo.run(options, topology, directory)


if __name__ == "__main__":
    launch("ppo", run)
