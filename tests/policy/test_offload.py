import pytest
import torch
from models import save_tiny_model

from areal_mega.config.options import OffloadOptions, OptimizerOptions, PolicyOptions
from areal_mega.data.packed import PackedBatch
from areal_mega.policy.model import MegatronModel
from areal_mega.policy.offload import Parked

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("offload")
    save_tiny_model(folder, "qwen3")
    return folder


def build(topology, folder, dtype, optimizer, offload):
    options = PolicyOptions(offload=OffloadOptions(optimizer=offload, reference=offload))
    return MegatronModel(topology, str(folder), options, dtype=dtype, optimizer=optimizer, head="logprob", seed=1)


def make_batch():
    rows = [{"tokens": list(range(n)), "loss_mask": [t > 0 for t in range(n)]} for n in (20, 33)]
    return PackedBatch.pack(rows)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_is_the_same_with_the_states_elsewhere(topology, folder, dtype):
    optimizer = OptimizerOptions(lr=1e-2, weight_decay=0.1)
    plain, parked = (build(topology, folder, dtype, optimizer, offload) for offload in (False, True))
    for _ in range(3):
        steps = [m.train_step(make_batch(), lambda b, out: (-out["logprobs"].sum() / 51, {})) for m in (plain, parked)]
        assert steps[0] == steps[1]
    weights = dict(parked.export())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in plain.export())
    moments = [x for state in parked.optimizer.chained_optimizers[0].optimizer.state.values() for x in state.values()]
    assert {id(host) for host in parked.states._hosts.values()} & {id(x) for x in parked.states._hosts} == set()
    assert len(parked.states._hosts) >= 2 * len(moments) // 3


def test_a_reference_computes_the_same_from_elsewhere(topology, folder):
    plain, parked = (build(topology, folder, "float32", None, offload) for offload in (False, True))
    expected = plain.forward(make_batch())["logprobs"]
    assert expected.abs().max() > 0
    for _ in range(2):
        assert torch.equal(parked.forward(make_batch())["logprobs"], expected)


def test_the_same_objects_hold_the_values_wherever_they_are():
    tensors = [torch.arange(4.0), torch.ones(2, 3, dtype=torch.bfloat16)]
    wanted = [x.clone() for x in tensors]
    parked = Parked(lambda: tensors, CPU)
    hosts = [x.data_ptr() for x in tensors]
    for _ in range(2):
        with parked.here():
            assert all(x.data_ptr() != host for x, host in zip(tensors, hosts, strict=True))
            for x, w in zip(tensors, wanted, strict=True):
                assert torch.equal(x, w)
                x += 1
                w += 1
        assert [x.data_ptr() for x in tensors] == hosts
        assert all(torch.equal(x, w) for x, w in zip(tensors, wanted, strict=True))


def test_tensors_that_appear_late_are_parked():
    tensors = []
    parked = Parked(lambda: tensors, CPU)
    with parked.here():
        tensors.append(torch.ones(3))
        place = tensors[0].data_ptr()
    assert tensors[0].data_ptr() != place and torch.equal(tensors[0], torch.ones(3))
