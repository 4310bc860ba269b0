"""Started by torchrun: a real Megatron model gives its weights to real SGLang engines, in several layouts.

For each case the engines start with other weights, get the trainers' through the transport, and are asked for SGLang's
own checksums; then SGLang loads the same model from its folder, in its own way, and is asked again. `test_weight_sync`
compares. The main rank writes ``OUT``: what was found, by case.
"""

from __future__ import annotations

import json
import resource
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from statistics import median
from threading import Event
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from areal_mega.config.options import ParallelOptions, PolicyOptions, ReshardingOptions, RolloutOptions, RuntimeOptions
from areal_mega.resharding.colocated import ColocatedTransport
from areal_mega.resharding.deployment import deploy
from areal_mega.resharding.disaggregated import DisaggregatedTransport
from areal_mega.resharding.disk import DiskTransport
from areal_mega.resharding.layouts import SGLangGrid
from areal_mega.resharding.transport import Transport
from areal_mega.resharding.weight_sync import WeightSync, WeightSyncError
from areal_mega.rollout.server import HTTP, SGLangServer
from areal_mega.runtime import distributed

PROMPT = [5, 17, 40, 3, 99]
CHANGED_EACH = 20  # this one, and so on, of each of a training rank's tensors
LONG = 400  # tokens of requests that are under way during an update
STREAMS = 4  # of these requests, on each engine, whose tokens are taken as they come
HEAD_START = 1.0  # seconds that the others begin before those: what came first runs first


def main(job: dict[str, Any]) -> None:
    """job: start (folder the engines start from), engines (tp, ep, count), cases, out."""
    first = ParallelOptions(**job["cases"][0]["parallel"])
    topology = distributed.initialize(RuntimeOptions(device="cpu"), first, seed=1)
    grid = SGLangGrid(**job["engines"], cpu=True)
    found = {}
    with ExitStack() as stack:
        engines = [stack.enter_context(server(job, number)) for number in range(grid.count)] if topology.is_main else []
        topology.barrier()
        for version, case in enumerate(job["cases"], start=1):
            topology = distributed.split(ParallelOptions(**case["parallel"]), torch.device("cpu"), 1, 600)
            found[case["name"]] = sync(topology, grid, engines, case | {"dtype": job["dtype"]}, version)
        if topology.is_main:
            Path(job["out"]).write_text(json.dumps(found))
        topology.barrier()
    distributed.shutdown()


def server(job: dict[str, Any], number: int) -> SGLangServer:
    grid = SGLangGrid(**job["engines"])
    options = RolloutOptions(
        prompts_per_step=8 * grid.count,
        max_prompt_tokens=24,
        max_new_tokens=LONG,
        engines=grid.count,
        tensor=grid.tp,
        expert=grid.ep,
        start_timeout=400,
    )
    log = Path(job["out"]).with_suffix(f".engine-{number}.log")
    return SGLangServer(job["start"], options, dtype=job["dtype"], device="cpu", seed=1, log_path=log)


def sync(topology, grid, engines, case, version) -> dict[str, Any]:
    from areal_mega.policy.model import MegatronModel

    options = PolicyOptions(parallel=topology.parallel)
    model = MegatronModel(
        topology, case["folder"], options, dtype=case["dtype"], optimizer=None, head="logprob", seed=1
    )
    places = topology.gather(model.place)
    way = case.get("transport", "colocated")
    deployment = deploy(model.hf, places, grid, colocated=way == "colocated", per_node=topology.world)
    common = topology, deployment, model.held_weights, case.get("buffer_bytes", 1 << 30)
    delta = case.get("delta", False)
    transport = make_transport(way, common, Path(case["folder"]), hosts=case.get("hosts"), remember=delta)
    weight_sync = WeightSync(topology, deployment, transport, ReshardingOptions(verify="always", delta=delta), engines)
    before = [checksums(engine) for engine in engines]
    if delta:  # a part of the elements is something else in the first update
        whole = {name: weight.clone() for name, weight in model.held_weights.items()}
        for weight in model.held_weights.values():
            weight.view(-1)[::CHANGED_EACH].add_(1)
    report = weight_sync.send(version)
    assert not report.failures
    if delta:
        for name, weight in model.held_weights.items():
            weight.copy_(whole[name])
    with ThreadPoolExecutor(64) as threads:  # through the connection that there is, and while requests run
        silent = (case.get("requests", STREAMS) - STREAMS) * engines
        running = [threads.submit(answer, engine, LONG, stream=False) for engine in silent]
        time.sleep(HEAD_START if silent else 0)
        begun = [Event() for _ in range(STREAMS * len(engines))]
        streams = [threads.submit(answer, engines[i // STREAMS], LONG, event) for i, event in enumerate(begun)]
        for event in begun:
            event.wait(60)
        began = time.monotonic()
        again = weight_sync.send(version + 100)
        assert not again.failures
        ended = time.monotonic()
        under_way = [request.result() for request in [*streams, *running]]
    result = {
        "report": asdict(report),
        "again": asdict(again),
        "chunks": len(transport.outgoing.chunks),
        "before": before,
        "sent": [checksums(engine) for engine in engines],
        "under_way": under_way,
        "standstill": standstill([a for s in streams for a in s.result()["arrivals"]], began, ended),
        "answers": [answer(engine) for engine in engines],
        "files": sorted(file.name for file in Path(case["folder"]).glob("weights-*/*")),
    }
    if way == "disk":
        result["full"] = on_a_full_disk(weight_sync, engines, version + 200)
    for engine in engines:
        # The prefix cache was filled by the same weights; flushing it is refused while a request is being tidied up.
        how = {"model_path": case["folder"], "weight_version": str(version), "flush_cache": False}
        engine.order("/update_weights_from_disk", how)
    return result | {"loaded": [checksums(engine) for engine in engines]}


def on_a_full_disk(weight_sync, engines, version) -> dict[str, Any]:
    """As if it were full: no rank may write a file of more than a few bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    error = ""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        weight_sync.send(version)
    except WeightSyncError as found:
        error = str(found)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    return {"error": error, "sums": [checksums(e) for e in engines], "answers": [answer(e) for e in engines]}


def make_transport(name, common, folder, hosts=None, *, remember=False) -> Transport:
    """folder: for the files of the disk transport."""
    if name == "colocated":
        return ColocatedTransport(*common, hosts)
    if name == "disk":
        return DiskTransport(*common, folder=folder, directory=folder, remember=remember)
    return DisaggregatedTransport(*common, remember=remember)


def checksums(engine: SGLangServer) -> list[dict[str, str]]:
    """SGLang's own, of the parameters of each rank."""
    answer = engine.order("/weights_checker", {"action": "checksum"})
    return sorted((rank["checksums"] for rank in answer["ranks"]), key=json.dumps)


def standstill(arrivals: list[float], began: float, ended: float) -> dict[str, float]:
    """Seconds of the update, and between the tokens before and after it; for comparison the median between tokens."""
    gaps = list(pairwise(sorted(arrivals)))
    over = [after - before for before, after in gaps if before < ended and after > began]
    usual = [after - before for before, after in gaps if not (before < ended and after > began)]
    return {"update": ended - began, "gap": max(over, default=0.0), "usual": median(usual) if usual else 0.0}


def answer(engine: SGLangServer, length: int = 8, begun: Event | None = None, *, stream: bool = True) -> dict[str, Any]:
    """begun: set when the first token is there."""
    body = {
        "input_ids": PROMPT,
        "sampling_params": {"max_new_tokens": length, "temperature": 0, "ignore_eos": True},
        "return_logprob": True,
        "stream": stream,
    }
    request = urllib.request.Request(
        f"{engine.url}/generate",
        data=json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {engine.api_key}", "Content-Type": "application/json"},
    )
    arrivals = []
    with HTTP.open(request, timeout=300) as response:
        for line in response:
            if line.startswith((b"data: {", b"{")):
                arrivals.append(time.monotonic())
                said = json.loads(line.removeprefix(b"data: "))
                if begun:
                    begun.set()
    logprobs = [logprob for logprob, _, _ in said["meta_info"]["output_token_logprobs"]]
    spans = [(span["version"], span["end"] - span["start"]) for span in said["meta_info"]["weight_versions"]]
    return {"tokens": said["output_ids"], "logprobs": logprobs, "versions": spans, "arrivals": arrivals}


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
