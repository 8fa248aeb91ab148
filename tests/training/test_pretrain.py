"""The loop: resumption bit for bit, keyed randomness, and what goes wrong."""

import hashlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from avtcli import registry
from avtcli.data.epoch_table import sample_epoch_table
from avtcli.errors import AvtError, InterruptedRunError, RunFailedError
from avtcli.events import Event, Notice, Progress, Saved
from avtcli.storage.checkpoints import load_newest
from avtcli.training import monitor
from avtcli.training.training_setup import build_training_setup
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

    assert int(names["encoder.backbone.conv1.0.1.num_batches_tracked"]) == 4  # two views, two steps


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
    monkeypatch.setattr(monitor, "held_out_mace", lambda *args, **kwargs: pytest.fail("measured again"))
    run_tiny(run, resume=True, eval_every=3)
    result = json.loads((run / "result.json").read_text())

    assert {**result, "seconds": 0} == {**before, "seconds": 0}


def test_the_measurement_after_the_last_step_reports_its_progress(tmp_path: Path) -> None:
    events: list[Event] = []
    run_tiny(tmp_path / "run", eval_every=0, on_event=events.append)

    assert [e.done for e in events if isinstance(e, Progress) and e.task == "held-out pairs"] == [40]


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

    assert any(isinstance(e, Notice) and e.text.startswith("skipping step-0000000006") for e in events)
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

    with pytest.raises(AvtError, match=r"'fashion-mini' is not the one that .* its fingerprint was another, found"):
        run_tiny(run, resume=True)


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


def test_a_loss_that_is_not_finite_stops_and_keeps_the_good_checkpoint(tmp_path: Path) -> None:
    pieces = [{"start": 0, "rate": 0.01}, {"start": 1, "rate": 1e30}]
    over = {"optimizer": {"name": "sgd"}, "schedule": {"epochs": 3, "pieces": pieces}}
    with pytest.raises(RunFailedError, match=r"The loss was (nan|inf) at step [5-9]\. .*lower learning rate"):
        run_tiny(tmp_path / "run", **over)

    kept = load_newest(tmp_path / "run" / "checkpoints")
    assert all(tensor.isfinite().all() for tensor in kept.model.values())


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
    rows = table.order[:16]
    images = data.train.images[subset(2000, 40, "limit", 2000)][rows]
    x = crop_and_flip(images, table.uniforms[rows], crop=(32, 32), padding=4).float() / 255
    y = family.apply(x, table.parameters[0][rows])
    noise = [torch.randn(16, 10, 8, 8, generator=keyed_generator(0, 0, "noise", view)) for view in ("original", "moved")]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.05)
    mean, log_var = net((x - 0.2190) / 0.3318, (y - 0.2190) / 0.3318, noise)
    error = functional.mse_loss(mean, table.targets[0][rows].float(), reduction="none")
    ((log_var + error / (log_var.exp() + 1e-4)).sum() / 16).backward()
    optimizer.step()
    run = run_tiny(tmp_path / "run", **config.model_dump(exclude={"recipe"}, exclude_none=True))
    saved = load_newest(run / "checkpoints").model

    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(saved[name], tensor, rtol=1e-6, atol=1e-7)


def test_the_table_of_an_epoch_is_new_and_holds_every_sample_once() -> None:
    family = registry.build("transform", "projective", {})
    one, two = (sample_epoch_table(0, epoch, 50, family, (32, 32)) for epoch in (0, 1))

    assert sorted(one.order.tolist()) == list(range(50))
    for name in ("order", "uniforms"):
        assert not torch.equal(getattr(one, name), getattr(two, name))
    for name in ("parameters", "targets"):
        assert not torch.equal(getattr(one, name)[0], getattr(two, name)[0])
    assert len({tuple(row) for row in one.parameters[0].tolist()}) == 50


def test_each_transformed_view_has_its_own_draws_and_the_first_stays() -> None:
    family = registry.build("transform", "projective", {})
    one, two = (sample_epoch_table(0, 0, 50, family, (32, 32), transformed=n) for n in (1, 2))

    assert torch.equal(one.parameters[0], two.parameters[0])
    assert not torch.equal(two.parameters[0], two.parameters[1])
    assert torch.equal(two.targets[1], family.target(two.parameters[1], (32, 32)))


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"device": "cuda"}, "There is no cuda device here"),
        ({"device": "cpu", "precision": "fp16"}, "fp16 training needs a GPU"),
        ({"limit_train": 5000}, "--limit-train 5000 is more than the 2000 images"),
        ({"augment": {"crop": 64}}, r"The images are 32x32 px, too small for augment\.crop = 64"),
        ({"homographies": "nowhere.safetensors"}, r"The bank nowhere\.safetensors cannot be read"),
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
