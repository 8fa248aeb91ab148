"""The loop: resumption bit for bit, keyed randomness, and what goes wrong."""

import hashlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from avtcli import registry
from avtcli.bench.dry_run import dry_run
from avtcli.config.toml_text import to_toml
from avtcli.contracts import Loss
from avtcli.data.epoch_table import EpochTable, sample_epoch_table
from avtcli.data.resident_images import ResidentImages
from avtcli.errors import AvtError, InterruptedRunError, RunFailedError
from avtcli.events import Event, Notice, Progress, Saved, ignore
from avtcli.storage.checkpoints import load_newest
from avtcli.storage.run_folders import create_run
from avtcli.training import monitor
from avtcli.training.optimizer import build_optimizer, optimizer_tensors
from avtcli.training.pretrain import pretrain
from avtcli.training.step import Trainer
from avtcli.training.training_setup import TrainingSetup, build_training_setup
from tests.support import run_tiny, tiny_config

OPTIMIZERS = [
    {"optimizer": {"name": "adamw"}, "eval_every": 1},
    {
        "optimizer": {"name": "sgd", "weight_decay": 5e-4},
        "schedule": {"pieces": [{"start": 0, "rate": 0.01}], "log_var_pieces": [{"start": 0, "rate": 0.1}]},
    },
]


def state_hash(run: Path, step: int) -> str:
    """The hash of all tensors of a checkpoint and of the parameter groups: no time, no path."""
    folder = run / "checkpoints" / f"step-{step:010d}"
    digest = hashlib.sha256()
    for name in ("model.safetensors", "state.safetensors"):
        digest.update((folder / name).read_bytes())
    digest.update(json.dumps(json.loads((folder / "state.json").read_text())["param_groups"]).encode())
    return digest.hexdigest()


def after(step: int, do: Callable[[], None]) -> Callable[[Event], None]:
    """Do something once, when the progress of a step is reported."""
    done: list[bool] = []

    def on_event(event: Event) -> None:
        reached = isinstance(event, Progress) and event.task == "pretraining" and event.done >= step
        if reached and not done:
            done.append(True)
            do()

    return on_event


@pytest.mark.parametrize("over", OPTIMIZERS, ids=["adamw, evaluated", "sgd, two groups"])
@pytest.mark.parametrize(
    "stops", [[4], [3], [1, 2, 6], [0]], ids=["mid-epoch", "end of an epoch", "three times", "before the first step"]
)
def test_stopped_and_resumed_is_never_stopped_bit_for_bit(tmp_path: Path, over: dict[str, object], stops: list[int]) -> None:
    whole = run_tiny(tmp_path / "whole", **over)
    stopped = tmp_path / "stopped"
    for i, step in enumerate(stops):
        with pytest.raises(InterruptedRunError, match="the state is saved"):
            run_tiny(stopped, resume=i > 0, on_event=after(step, lambda: os.kill(os.getpid(), signal.SIGTERM)), **over)
    run_tiny(stopped, resume=True, **over)

    assert state_hash(stopped, 9) == state_hash(whole, 9)
    assert (stopped / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()


def test_a_step_changes_the_state_so_that_equal_hashes_mean_something(tmp_path: Path) -> None:
    hashes = {state_hash(run_tiny(tmp_path / f"{steps}", max_steps=steps), steps) for steps in (2, 3)}

    assert len(hashes) == 2


def test_the_running_averages_are_part_of_what_is_compared(tmp_path: Path) -> None:
    names = load_newest(run_tiny(tmp_path / "run", max_steps=2) / "checkpoints").model

    assert int(names["encoder.backbone.conv1.0.1.num_batches_tracked"]) == 2
    assert int(names["transformed.backbone/conv1/0/1/num_batches_tracked"]) == 2


def test_one_seed_gives_one_result_and_another_seed_another(tmp_path: Path) -> None:
    hashes = [state_hash(run_tiny(tmp_path / f"{i}", max_steps=4, seed=seed), 4) for i, seed in enumerate((0, 0, 1))]

    assert hashes[0] == hashes[1]
    assert hashes[0] != hashes[2]


def test_draws_of_the_caller_do_not_change_the_run(tmp_path: Path) -> None:
    first = state_hash(run_tiny(tmp_path / "a", max_steps=3), 3)
    torch.rand(17)

    assert state_hash(run_tiny(tmp_path / "b", max_steps=3), 3) == first


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(tmp_path: Path, number: signal.Signals) -> None:
    run, handler = tmp_path / "run", signal.getsignal(number)
    expected = rf"after step 6; the state is saved.*\n  avt pretrain --resume {run}"
    with pytest.raises(InterruptedRunError, match=expected) as caught:
        run_tiny(run, on_event=after(5, lambda: os.kill(os.getpid(), number)))

    assert caught.value.exit_code == 128 + number
    assert load_newest(run / "checkpoints").about["step"] == 6
    assert signal.getsignal(number) is handler


def test_a_finished_run_resumed_reports_the_same_without_evaluating(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_tiny(tmp_path / "run", eval_every=3)
    before = json.loads((run / "result.json").read_text())
    monkeypatch.setattr(monitor, "predict", lambda *args, **kwargs: pytest.fail("measured again"))
    run_tiny(run, resume=True, eval_every=3)
    result = json.loads((run / "result.json").read_text())

    assert {**result, "seconds": 0} == {**before, "seconds": 0}


def test_the_measurement_after_the_last_step_reports_its_progress(tmp_path: Path) -> None:
    events: list[Event] = []
    run_tiny(tmp_path / "run", eval_every=0, on_event=events.append)

    assert [e.done for e in events if isinstance(e, Progress) and e.task == "monitor: corner error"] == [0, 60]


def test_more_steps_go_on_where_the_limit_was(tmp_path: Path) -> None:
    whole = run_tiny(tmp_path / "whole")
    run = run_tiny(tmp_path / "run", max_steps=5)
    run_tiny(run, resume=True)

    assert state_hash(run, 9) == state_hash(whole, 9)


def test_a_damaged_newest_checkpoint_falls_back_and_the_run_ends_the_same(tmp_path: Path) -> None:
    whole, run, events = run_tiny(tmp_path / "whole"), tmp_path / "run", list[Event]()
    run_tiny(run, max_steps=4)
    run_tiny(run, resume=True, max_steps=6)
    newest = run / "checkpoints" / "step-0000000006" / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-9])
    run_tiny(run, resume=True, on_event=events.append)

    assert any(isinstance(e, Notice) and e.text.startswith("step-0000000006 is damaged and is set aside as") for e in events)
    assert state_hash(run, 9) == state_hash(whole, 9)
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == list(range(1, 10))


def test_other_data_are_refused_on_resumption(tmp_path: Path) -> None:
    run = run_tiny(tmp_path / "run", max_steps=2)
    folder = run / "checkpoints" / "step-0000000002"
    state = json.loads((folder / "state.json").read_text())
    state["environment"]["data_fingerprint"] = "another"
    blob = json.dumps(state).encode()
    (folder / "state.json").write_bytes(blob)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["state.json"] = {"size": len(blob), "sha256": hashlib.sha256(blob).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))

    about, tried = (run / "env.json").read_text(), partial(dry_run, tiny_config(), run=run, resume=True, on_event=ignore)
    for go_on in (partial(run_tiny, run, resume=True), tried):
        with pytest.raises(AvtError, match=r"'fashion-mini' is not the data set of .* its fingerprint was another, found"):
            go_on()
    assert (run / "env.json").read_text() == about


def test_changed_threads_are_announced_on_resumption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, events = run_tiny(tmp_path / "run", max_steps=2), list[Event]()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)  # two on busy cores would spin
    run_tiny(run, resume=True, max_steps=3, on_event=events.append)

    assert any(isinstance(e, Notice) and e.text.startswith("threads was 1, is 2: the numbers") for e in events)
    assert json.loads((run / "env.json").read_text())["resumed"][0]["threads"] == 2


def test_a_checkpoint_stands_before_the_first_step_and_at_the_end(tmp_path: Path) -> None:
    events = list[Event]()
    run = run_tiny(tmp_path / "run", on_event=events.append)

    assert [e.path.name for e in events if isinstance(e, Saved)] == ["step-0000000000", "step-0000000009"]
    expected = {"checkpoints", "config.toml", "env.json", "lock", "metrics.jsonl", "result.json"}
    assert {path.name for path in run.iterdir()} == expected


def test_minutes_between_checkpoints_are_obeyed(tmp_path: Path) -> None:
    events = list[Event]()
    run_tiny(tmp_path / "run", on_event=events.append, max_steps=3, save_every=1e-9)

    assert [e.path.name[-1] for e in events if isinstance(e, Saved)] == ["0", "1", "2", "3"]


def test_three_steps_in_a_row_that_are_not_finite_end_the_run(tmp_path: Path) -> None:
    run, events = tmp_path / "run", list[Event]()
    pieces = [{"start": 0, "rate": 0.01}, {"start": 1, "rate": 1e30}]
    over = {"optimizer": {"name": "sgd"}, "schedule": {"epochs": 3, "pieces": pieces}}
    with pytest.raises(RunFailedError, match=r"3 steps in a row .*--lr 3e\+29`; .* last good checkpoint is .*step-0000000007"):
        run_tiny(run, **over, on_event=events.append)

    kept = load_newest(run / "checkpoints")
    assert all(tensor.isfinite().all() for tensor in kept.model.values())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 8))
    skipped = [line["step"] for line in lines if "skipped" in line]
    assert skipped == [5, 6, 7]
    assert all((line["loss"] is None) <= ("skipped" in line) for line in lines)
    notices = [e.text for e in events if isinstance(e, Notice) and "was skipped and changed nothing" in e.text]
    assert [int(text.split()[1]) for text in notices] == skipped


@pytest.mark.parametrize("poison", ["input", "gradient", "one loss of many"])
@pytest.mark.parametrize(
    "optimizer",
    [{"name": "sgd"}, {"name": "adamw"}, {"name": "sgd", "fused": False}, {"name": "adamw", "fused": False}],
    ids=str,
)
@pytest.mark.parametrize("before", [0, 2])
def test_a_step_that_is_not_finite_changes_nothing(poison: str, optimizer: dict[str, object], before: int) -> None:
    setup = build_training_setup(tiny_config(optimizer=optimizer), on_event=lambda event: None)
    setup.net.register_buffer("transposed", torch.arange(6.0).view(2, 3).T)  # as a backbone may have one
    trainer = Trainer(setup, build_optimizer(setup.config, setup.net))
    batches = list(setup.build_loader(setup.open_images()).read(0, 5))
    for step in range(before):
        assert not trainer.step(step, batches[step]).skipped
    kept = snapshot(setup, trainer)
    batch, hooks = batches[before], []
    if poison == "input":
        batch = replace(batch, views=(batch.views[0], batch.views[1].clone().index_fill_(0, torch.tensor([3]), float("nan"))))
    elif poison == "gradient":
        weight = next(p for p in setup.net.encoder.parameters() if p.requires_grad)
        hooks.append(weight.register_hook(lambda g: g.flatten().index_fill(0, torch.tensor([1]), float("inf")).view_as(g)))
    else:
        one = torch.zeros(len(batch.indices)).index_fill_(0, torch.tensor([2]), float("inf"))
        hooks.append(setup.net.objective.register_forward_hook(lambda m, i, loss: Loss(loss.per_sample + one, loss.parts)))

    result = trainer.step(before, batch)
    for hook in hooks:
        hook.remove()

    assert result.skipped
    assert {name: value.tobytes() for name, value in snapshot(setup, trainer).items()} == {
        name: value.tobytes() for name, value in kept.items()
    }
    assert not trainer.step(before + 1, batches[before + 1]).skipped
    assert snapshot(setup, trainer).keys() >= kept.keys()
    assert all(np.isfinite(value).all() for value in snapshot(setup, trainer).values())


def snapshot(setup: TrainingSetup, trainer: Trainer) -> dict[str, Any]:
    """Every number that a step may change, but for a count of steps or a state that begins with the first one."""
    state, _ = optimizer_tensors(trainer.optimizer)
    state = {name: tensor for name, tensor in state.items() if tensor.any()}
    return {name: tensor.detach().clone().numpy() for name, tensor in {**setup.net.state_dict(), **state}.items()}


def test_a_run_killed_before_its_first_checkpoint_starts_again_by_resume(tmp_path: Path) -> None:
    whole, run = run_tiny(tmp_path / "whole"), tmp_path / "run"
    create_run(run, to_toml(tiny_config()), {})
    run_tiny(run, resume=True)

    assert state_hash(run, 9) == state_hash(whole, 9)


def test_a_failed_start_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **named: object) -> None:
        raise RunFailedError("the disk is full")

    monkeypatch.setattr("avtcli.training.pretrain.save_state", full)
    with pytest.raises(RunFailedError, match="the disk is full"):
        run_tiny(tmp_path / "run")

    assert list(tmp_path.iterdir()) == []


def test_two_runs_of_the_default_name_get_two_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("avtcli.storage.run_folders.datetime", SimpleNamespace(now=lambda: datetime(2026, 1, 2)))
    folders = [pretrain(tiny_config(max_steps=1), run=None, resume=False, on_event=lambda event: None).run for _ in range(2)]

    assert [Path(folder).name for folder in folders] == [f"20260102-000000-fashion-mini-nin-avt{n}" for n in ("", "-2")]


def test_a_signal_during_an_evaluation_ends_it_and_resumption_makes_it_up(tmp_path: Path) -> None:
    whole, run = run_tiny(tmp_path / "whole", eval_every=1), tmp_path / "run"

    def interrupt(event: Event) -> None:
        if (
            isinstance(event, Progress)
            and event.task == "monitor: codes of training images"
            and (run / "metrics.jsonl").read_text().count('"loss"') == 6
        ):
            os.kill(os.getpid(), signal.SIGUSR2)

    with pytest.raises(InterruptedRunError, match="after step 6; the state is saved"):
        run_tiny(run, eval_every=1, on_event=interrupt)
    assert load_newest(run / "checkpoints").about["step"] == 6
    assert (run / "metrics.jsonl").read_text().count('"eval"') == 2
    run_tiny(run, eval_every=1, resume=True)

    assert (run / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
    assert state_hash(run, 9) == state_hash(whole, 9)


def test_a_signal_that_was_ignored_at_the_start_stays_ignored(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        run_tiny(tmp_path / "run", on_event=after(5, lambda: os.kill(os.getpid(), signal.SIGHUP)))
    finally:
        signal.signal(signal.SIGHUP, before)

    assert load_newest(tmp_path / "run" / "checkpoints").about["step"] == 9


def test_what_a_failing_reader_leaves_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, run, read = run_tiny(tmp_path / "whole"), tmp_path / "run", ResidentImages.read_batches

    def failing(self: ResidentImages, batches: Any, crop: Any, uniforms: Any = None) -> Iterator[Any]:
        for i, batch in enumerate(read(self, batches, crop, uniforms)):
            if i == 2 and not broken:
                broken.append(True)
                raise RunFailedError("a reader process ended")
            yield batch

    broken: list[bool] = []
    monkeypatch.setattr(ResidentImages, "read_batches", failing)
    with pytest.raises(
        RunFailedError, match=r"a reader process ended\nThe state after step 2 is saved .*\n  avt pretrain --resume"
    ):
        run_tiny(run)
    assert load_newest(run / "checkpoints").about["step"] == 2
    assert "a reader process ended" in json.loads((run / "env.json").read_text())["failure"]
    run_tiny(run, resume=True)
    assert json.loads((run / "env.json").read_text())["failure"] is None

    assert state_hash(run, 9) == state_hash(whole, 9)


def test_one_step_is_the_step_of_plain_torch(tmp_path: Path) -> None:
    """Written out by hand: keyed table, two calls, the release's loss, SGD."""
    from torch.nn import functional

    from avtcli.geometry.cropping import crop_and_flip
    from avtcli.seeding import keyed_generator, subset

    config = tiny_config(max_steps=1, optimizer={"name": "sgd"}, schedule={"pieces": [{"start": 0, "rate": 0.01}]})
    net = build_training_setup(config, on_event=lambda event: None).net.train()
    data = registry.build("dataset", "fashion-mini", {}, data_dir=Path())
    family = registry.build("transform", "projective", {})
    table = sample_epoch_table(0, 0, 40, family, (32, 32))
    rows, first = table.order[:16], torch.arange(16)
    ((uniforms,), (parameters, targets)) = table.uniforms.read(first), table.transformed.read(first)
    images = data.train.images[subset(2000, 40, "limit", 2000)][rows]
    x = crop_and_flip(images, uniforms, crop=(32, 32), padding=4).float() / 255
    y = family.apply(x, parameters)
    noise = [torch.randn(16, 10, 8, 8, generator=keyed_generator(0, 0, "noise", view)) for view in ("original", "moved")]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.05)
    mean, log_var = net((x - 0.2190) / 0.3318, (y - 0.2190) / 0.3318, noise)
    error = functional.mse_loss(mean, targets.float(), reduction="none")
    ((log_var + error / (log_var.exp() + 1e-4)).sum() / 16).backward()
    optimizer.step()
    run = run_tiny(tmp_path / "run", **config.model_dump(exclude={"recipe"}, exclude_none=True))
    saved = load_newest(run / "checkpoints").model

    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(saved[name], tensor, rtol=1e-6, atol=1e-7)


def drawn(table: EpochTable) -> list[torch.Tensor]:
    every = torch.arange(len(table.order))
    return [*table.uniforms.read(every), *table.transformed.read(every)]


def test_the_table_of_an_epoch_is_new_and_holds_every_sample_once() -> None:
    family = registry.build("transform", "projective", {})
    one, two = (sample_epoch_table(0, epoch, 50, family, (32, 32)) for epoch in (0, 1))

    assert sorted(one.order.tolist()) == list(range(50))
    assert not torch.equal(one.order, two.order)
    for a, b in zip(drawn(one), drawn(two), strict=True):
        assert not torch.equal(a, b)
    assert len({tuple(row) for row in drawn(one)[1].tolist()}) == 50


def test_each_transformed_view_has_its_own_draws_and_the_first_stays() -> None:
    family = registry.build("transform", "projective", {})
    one, two = (sample_epoch_table(0, 0, 50, family, (32, 32), transformed=n) for n in (1, 2))
    (first, _), (same, second, _, target) = (table.transformed.read(torch.arange(50)) for table in (one, two))

    assert torch.equal(first, same)
    assert not torch.equal(same, second)
    assert torch.equal(target, family.target(second, (32, 32)))


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"device": "cuda"}, "There is no cuda device here"),
        ({"device": "cpu", "precision": "fp16"}, "fp16 training needs a GPU"),
        ({"limit_train": 5000}, "--limit-train 5000 is more than the 2000 images"),
        ({"augment": {"crop": 64}}, r"The images are 32x32 px, too small for augment\.crop = 64"),
        ({"homographies": "nowhere.safetensors"}, r"nowhere\.safetensors cannot be read"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(tmp_path: Path, over: dict[str, object], message: str) -> None:
    if over.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(AvtError, match=message):
        run_tiny(tmp_path / "run", **over)
    assert not (tmp_path / "run").exists()


def test_a_bank_made_at_the_start_is_drawn_from_and_resumes(tmp_path: Path) -> None:
    whole = run_tiny(tmp_path / "whole", bank_count=50)
    run_tiny(tmp_path / "run", bank_count=50, max_steps=4)
    run_tiny(tmp_path / "run", bank_count=50, resume=True)

    assert state_hash(tmp_path / "run", 9) == state_hash(whole, 9)
    assert state_hash(whole, 9) != state_hash(run_tiny(tmp_path / "plain"), 9)
