"""Evaluations while a run is trained: now and then the same figures, one line in the log each, and a collapse named."""

from collections.abc import Sequence
from dataclasses import asdict

from accelerate.utils import broadcast_object_list

from avtcli.events import Notice, OnEvent
from avtcli.storage.metrics_log import MetricsLog
from avtcli.training.collapse import Point, in_words, new_signs
from avtcli.training.run_quality import decoder_mace, measure
from avtcli.training.training_setup import TrainingSetup


class Monitor:
    """Evaluates a run when it is time, writes the figures beside the losses, and names a collapse, once a kind.

    What it knows it reads from the log, so that a resumed run goes on as if it had never stopped.

    Args:
        setup: the run; its network is left in the mode it was in, and no draw of the training is touched.
        metrics: where the figures go, one line an evaluation: the step, the epochs done, and `eval`.
        on_event: told the figures.
    """

    def __init__(self, setup: TrainingSetup, metrics: MetricsLog, *, on_event: OnEvent) -> None:
        self.setup, self.metrics, self.on_event = setup, metrics, on_event
        self.points: list[Point] = [line for line in metrics.read() if "eval" in line]

    def is_due(self, step: int) -> bool:
        """Whether to evaluate after a step: the first, while weights are random, every so many epochs, and the last epoch."""
        config, (epoch, rest) = self.setup.config, divmod(step, len(self.setup.bounds))
        if not config.eval_every:
            return False
        return step == 1 or (not rest and (epoch % config.eval_every == 0 or epoch == config.total_epochs))

    def maybe_evaluate(self, step: int) -> str:
        """Evaluate if it is due, in the main process while the others wait.

        Returns:
            In every process, the collapse for which the run is to stop; empty where there is none.
        """
        if not self.is_due(step):
            return ""
        told = [self._evaluate(step) if self.setup.accelerator.is_main_process else ""]
        broadcast_object_list(told)
        return told[0]

    def final_mace(self, step: int) -> float | None:
        """The corner error after the last step: as evaluated there, or measured now."""
        if self.points and self.points[-1]["step"] == step:
            found: float | None = self.points[-1]["eval"]["mace_px"]
            return found
        self.setup.net.eval()
        return decoder_mace(self.setup)

    def _evaluate(self, step: int) -> str:
        setup = self.setup
        training = setup.net.training
        setup.net.eval()
        quality = measure(setup)
        setup.net.train(training)
        self.points.append({"step": step, "epoch": step // len(setup.bounds), "eval": asdict(quality)})
        self.metrics.append(self.points[-1:])
        self.on_event(Notice(_summary(self.points)))
        signs = new_signs(self.points, config=setup.config, steps_per_epoch=len(setup.bounds))
        if setup.config.stop_on_collapse:
            return " ".join(signs)
        for sign in signs:
            self.on_event(Notice(sign))
        return ""


def _summary(points: Sequence[Point]) -> str:
    """One line: `epoch 10: MACE 12.3 px (constant 23.5)  k-NN 81.2 % (+1.3)  RankMe 31.0/48  code std 0.41`."""
    first, now = points[0]["eval"], points[-1]["eval"]
    words = []
    if now["constant_mace_px"] is not None:
        words.append(f"MACE {in_words(now['mace_px'], '.1f')} px (constant {now['constant_mace_px']:.1f})")
    if now["knn_top1"] is not None:
        gain = "" if len(points) == 1 or first["knn_top1"] is None else f" ({now['knn_top1'] - first['knn_top1']:+.1f})"
        words.append(f"k-NN {now['knn_top1']:.1f} %{gain}")
    words.append(f"RankMe {in_words(now['rankme'], '.1f')}/{now['rankme_max']}")
    words.append(f"code std {in_words(now['code_std'], '.3f')}")
    return f"epoch {points[-1]['epoch']}: " + "  ".join(words)
