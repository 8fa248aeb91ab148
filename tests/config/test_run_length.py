"""How long a run is."""

import pytest

from avtcli.config.resolution import resolve
from avtcli.config.run_length import RunLength, describe_seconds, within_budget
from avtcli.events import Event, Notice


def test_time_counts_the_pairs_of_the_steps_that_are_left() -> None:
    """Of 250 images in 3 batches: 2 of 100 and one of 50."""
    length = RunLength(images=250, steps_per_epoch=3, epochs=4)

    assert length.steps == 12
    assert length.seconds(50) == pytest.approx(20)
    assert length.seconds(50, after=6) == pytest.approx(10)
    assert length.seconds(50, after=12) == 0
    assert RunLength(250, 3, 4, max_steps=3).seconds(50) == pytest.approx(5)
    assert RunLength(250, 3, 4, max_steps=99).steps == 12


def test_what_takes_more_than_an_hour_is_offered_in_an_hour() -> None:
    published = RunLength(images=50_000, steps_per_epoch=98, epochs=4500)

    assert published.shorter(60) == "--epochs 4"  # 216 000 pairs an hour
    assert published.shorter(13) == "--epochs 1 --limit-train 46800"
    assert published.advice(60) == "more than a day; `--epochs 4` takes about an hour here"
    assert published.advice(25_000) == "`--epochs 1800` takes about an hour here"  # 2.5 h
    assert published.advice(62_500) == ""
    assert RunLength(50_000, 98, 4500, max_steps=98).advice(60) == ""


def test_what_is_offered_counts_its_evaluations_and_is_shorter() -> None:
    """100 epochs of 2 000 images with as much work again in evaluations, at 100 pairs/s: 4 000 s."""
    length = RunLength(images=2_000, steps_per_epoch=20, epochs=100, evaluation=200_000)

    assert length.shorter(100) == "--epochs 90"
    assert RunLength(images=500_000, steps_per_epoch=20, epochs=1, evaluation=500_000).shorter(100) == (
        "--epochs 1 --limit-train 180000"
    )


def test_evaluations_count_with_their_images() -> None:
    """After the first step and epochs 10, 20 and 25; 1 000 images, 500 of the monitored ones, and 1 000 pairs of views."""
    config = resolve({"epochs": 25, "eval_every": 10}, recipe="default")
    length = RunLength.of(config, 2_000, 20, monitored=1_000)

    assert length.seconds(100) == pytest.approx((25 * 2_000 + 4 * 3_500 / 5) / 100)
    assert RunLength.of(config.model_copy(update={"eval_every": 0}), 2_000, 20, monitored=1_000).seconds(100) == 500


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (89, "89 s"), (720, "12 min"), (5400, "1.5 h"), (86_400, "24 h"), (3.75e6, "43 days"), (1.3e5, "1.5 days")],
)
def test_a_duration_has_a_readable_unit(seconds: float, text: str) -> None:
    assert describe_seconds(seconds) == text


@pytest.mark.parametrize(
    ("images", "over", "epochs"),
    [
        (2_000, {}, None),
        (6_666, {}, None),
        (6_667, {}, 29),
        (60_000, {}, 3),
        (1_281_167, {}, 1),
        (1_281_167, {"epochs": 7}, 7),
        (1_281_167, {"max_pairs": 10_000_000}, 7),
    ],
)
def test_epochs_of_many_images_follow_from_the_budget_with_a_notice(images: int, over: dict[str, int], epochs: int) -> None:
    events: list[Event] = []
    config = within_budget(resolve(over, recipe="default"), images, on_event=events.append)

    assert (config.epochs, config.total_epochs) == (epochs, epochs or 30)
    reduced = epochs is not None and "epochs" not in over
    assert [isinstance(event, Notice) and f"{epochs} of 30 epochs" in event.text for event in events] == [True] * reduced
