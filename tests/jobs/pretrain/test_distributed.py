"""Several processes (torchrun, gloo): they compute what one computes."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from codo.config import PretrainConfig, dump_yaml
from codo.errors import CodoError
from codo.jobs.pretrain import dry_run, pretrain
from codo.jobs.pretrain.method import groups_of_process
from codo.jobs.pretrain.training import Run
from codo.losses import Embeddings, Loss
from codo.runs.lock import held
from codo.runs.record import RunFolder
from codo.runs.world import World
from tests.parts import finish, launch, tiny_config


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def written(tmp_path, tiny):
    def write(**fields) -> str:
        given = {"optim.batch_size": 8, "optim.lr": 0.05, "optim.epochs": 3, **fields}
        file = tmp_path / f"config-{len(list(tmp_path.iterdir()))}.yaml"
        file.write_text(dump_yaml(tiny(**given)))
        return str(file)

    return write


CASES: dict[str, dict[str, Any]] = {
    "groups": {"model.bn_groups": 4},
    "sync_bn": {"model.bn_groups": 1},
    "accumulated": {"model.bn_groups": 4, "optim.accumulate": 2, "optim.clip_norm": 1.0},
    "mosaic": {"model.bn_groups": 2, "mosaic": 2, "optim.batch_size": 16},
    "cosine": {"model.bn_groups": 1, "loss.form": "cosine", "loss.symmetric": True, "hierarchy": False},
    # Of the backbone C4 and C5 take no part.
    "stage": {"alignment": False, "hierarchy": False, "loss.image": 0, "loss.stage": 1, "loss.stage_levels": [3]},
}


def join(rank: int, port: int) -> None:
    """Be one of two processes, as torchrun would say it."""
    torch.set_num_threads(1)
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "127.0.0.1"}


def free_ports(count: int) -> list[int]:
    with ExitStack() as held_open:
        bound = [held_open.enter_context(socket.socket()) for _ in range(count)]
        for free in bound:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in bound]


def every_case(rank: int, folder: Path, configs: dict[str, PretrainConfig], ports: list[int]) -> None:
    """Pretrain one config after the other as one of two processes: starting them takes longer than training."""
    for (name, config), port in zip(configs.items(), ports, strict=True):
        join(rank, port)
        pretrain(config, folder / name)


@pytest.fixture(scope="module")
def cases(tmp_path_factory, images) -> tuple[Path, dict[str, PretrainConfig]]:
    """The folder with what two processes have made of each case, and the configs."""
    folder, given = tmp_path_factory.mktemp("cases"), {"optim.batch_size": 8, "optim.lr": 0.05, "optim.epochs": 3}
    more = {"mosaic": {"data.foregrounds": str(images)}}  # all pictures, for a batch of 16
    configs = {name: tiny_config(images, **given | more.get(name, {}) | fields) for name, fields in CASES.items()}
    torch.multiprocessing.spawn(every_case, (folder, configs, free_ports(len(configs))), nprocs=2)
    return folder, configs


@pytest.mark.parametrize("case", CASES)
def test_two_processes_with_half_the_batch_each_compute_what_one_computes(tmp_path, cases, case):
    folder, configs = cases
    paths = pretrain(configs[case], tmp_path / "1").path, folder / case
    one, two = (losses(path) for path in paths)
    assert len(one) == 3
    assert two == pytest.approx(one, rel=2e-4)
    assert two[0] == pytest.approx(one[0], rel=1e-6)
    weights, others = (load_file(path / "weights.safetensors") for path in paths)
    for name, tensor in weights.items():
        if "running" not in name and tensor.is_floating_point():  # of its statistics a process updates a part
            assert torch.allclose(others[name], tensor, rtol=1e-2, atol=2e-5), name
    queues = [torch.load(path / "checkpoint.pt", weights_only=True)["method"] for path in paths]
    for name, tensor in queues[0].items():
        if name.endswith("queues.0.keys"):
            assert torch.allclose(queues[1][name], tensor, atol=1e-3)


class Scaled(Loss):
    """Begins another in each process, as a user's may, and draws random numbers."""

    embeds = "level"

    def __init__(self, start: float) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(start))
        self.register_buffer("offset", torch.tensor(start))
        self.register_buffer("drawn", torch.zeros(()))

    def forward(self, query: Embeddings, key: Embeddings) -> torch.Tensor:
        self.drawn += torch.rand(())
        return self.scale.square() * (query.level - key.level).square().mean() + self.offset


def in_process(rank: int, folder: Path, config: PretrainConfig, port: int) -> None:
    """Pretrain as one of two processes, each with a disk of its own; leave the method and what was returned there."""
    join(rank, port)
    (folder / str(rank)).mkdir()
    os.chdir(folder / str(rank))
    execute, state, found = Run.execute, Run.state, {}

    def executed(run: Run, out: RunFolder) -> dict[str, Any]:
        found["before"] = {name: value.clone() for name, value in run.method.losses.state_dict().items()}
        summary = execute(run, out)
        found["after"] = run.method.state_dict()
        return summary

    def stated(run: Run) -> dict[str, Any]:
        own = run.method.query_encoder.named_buffers()
        found["own"] = {name: buffer.clone() for name, buffer in own if "running" in name}
        return state(run)

    Run.execute, Run.state = executed, stated
    found["summary"] = pretrain(config, Path("run"), losses=[Scaled(1.0 + rank)]).summary
    torch.save(found, "found.pt")


@pytest.fixture(scope="module")
def two(tmp_path_factory, images) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("two")
    config = tiny_config(images, **{"optim.batch_size": 8, "model.bn_groups": 4, "optim.lr": 0.05})
    torch.multiprocessing.spawn(in_process, (folder, config, *free_ports(1)), nprocs=2)
    return folder, [torch.load(folder / str(rank) / "found.pt", weights_only=True) for rank in (0, 1)]


def test_a_users_losses_begin_and_stay_equal_in_all_processes(two):
    first, second = two[1]
    assert first["before"]["Scaled.scale"] == second["before"]["Scaled.scale"] == 1
    assert first["before"]["Scaled.offset"] == second["before"]["Scaled.offset"] == 1
    assert first["after"]["losses.Scaled.scale"] == second["after"]["losses.Scaled.scale"] != 1
    assert first["after"]["losses.Scaled.drawn"] == second["after"]["losses.Scaled.drawn"] > 0


def test_the_running_statistics_are_the_mean_of_all_processes(two):
    folder, found = two
    saved = load_file(folder / "0" / "run" / "weights.safetensors")
    own, others = (process["own"] for process in found)
    assert not all(torch.equal(own[name], others[name]) for name in own)
    for name in own:
        assert torch.allclose(saved[name], (own[name] + others[name]) / 2), name
        for process in found:
            assert torch.equal(process["after"][f"query_encoder.{name}"], saved[name]), name


def test_only_the_first_process_needs_the_run_folder(two):
    folder, (first, second) = two
    assert first["summary"] == second["summary"] == json.loads((folder / "0" / "run" / "summary.json").read_text())
    assert not list((folder / "1").glob("run*"))


def test_a_run_goes_on_with_another_number_of_processes_and_says_what_is_no_longer_exact(tmp_path, written):
    config, out = written(**{"model.bn_groups": 4}), str(tmp_path / "run")
    finish(launch(2, "pretrain", "--config", config, "--out", out))
    said = finish(launch(1, "pretrain", "--resume", out, "--epochs", "5"))
    assert "ran on 2 processes, now on 1" in " ".join(said.split())
    assert json.loads((tmp_path / "run/summary.json").read_text())["epochs"] == 5


def test_what_does_not_spread_over_the_processes_is_refused(tmp_path, written):
    said = finish(launch(2, "pretrain", "--config", written(**{"model.bn_groups": 4, "optim.accumulate": 4})), None)
    assert "4 groups do not spread evenly over 2 processes" in said


def test_mosaics_that_do_not_spread_over_the_processes_are_refused(tiny):
    config = tiny(**{"model.bn_groups": 1, "mosaic": 2, "optim.batch_size": 12})
    assert groups_of_process(config, World()) == 1
    with pytest.raises(CodoError, match=r"12 samples .* over 2 processes as mosaics of 2 x 2; make it a multiple of 8"):
        groups_of_process(config, World(size=2))


def test_other_images_in_another_process_are_refused(tmp_path, tiny, monkeypatch):
    collect = World.collect

    def other(world: World, value: Any) -> list[Any]:
        return [value, {**value, "usable": {"foregrounds": 7}}] if "usable" in value else collect(world, value)

    monkeypatch.setattr(World, "collect", other)
    with pytest.raises(CodoError, match=r"^data: the images of process 1 are not those of process 0: .*: 7\}"):
        pretrain(tiny(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_dry_run_is_of_one_process(tiny, monkeypatch):
    monkeypatch.setattr(World, "of_environment", staticmethod(lambda: World(0, 2, 0, 2)))
    with pytest.raises(CodoError, match="--dry-run: of one process; leave torchrun out"):
        dry_run(tiny())


def test_the_failure_of_one_process_ends_all_with_its_message(tmp_path, written):
    (tmp_path / "fails.py").write_text(
        "import os\nfrom codo import CodoError\n"
        "class Fails:\n"
        "    calls = 0\n"
        "    def __call__(self, rng, image, box, foregrounds):\n"
        "        self.calls += 1\n"
        "        if os.environ['RANK'] == '1' and self.calls > 10:\n"
        "            raise CodoError('the dog ate image 7')\n"
        "        return image, box\n"
    )
    config = written(**{"model.bn_groups": 4, "augment": [f"{tmp_path / 'fails.py'}:Fails"]})
    started = time.monotonic()
    said = finish(launch(2, "pretrain", "--config", config, "--out", str(tmp_path / "run")), None)
    assert "process 1: Error: the dog ate image 7" in said
    assert "process 0: Error: another process failed" in said
    assert time.monotonic() - started < 60


def test_a_run_that_is_at_work_is_refused_in_one_line_and_ends_all(tmp_path, written):
    config, out = written(**{"model.bn_groups": 4}), tmp_path / "run"
    finish(launch(2, "pretrain", "--config", config, "--out", str(out)))
    assert not (out / "lock").exists()
    before, started = (out / "metrics.jsonl").read_text(), time.monotonic()
    with held(out):
        said = finish(launch(2, "pretrain", "--resume", str(out), "--epochs", "5"), None)
    assert time.monotonic() - started < 60
    assert said.count(": Error: ") == 1, said
    assert f"process 0: Error: {out} is in use (host" in said
    assert (out / "metrics.jsonl").read_text() == before


def test_sigterm_stops_all_processes_after_the_same_step(tmp_path, written):
    config, out = written(**{"model.bn_groups": 4, "optim.epochs": 500}), tmp_path / "run"
    process = launch(2, "pretrain", "--config", config, "--out", str(out))
    deadline = time.monotonic() + 90
    while not (out / "metrics.jsonl").is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    said = finish(process, None)
    assert "go on with: codo pretrain --resume" in said
    step = torch.load(out / "checkpoint.pt", weights_only=True)["step"]
    assert losses(out)[step - 1 :]
    assert len(losses(out)) == step
