"""Pages to be tested: of a hostile model, of two runs, of a training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from html.parser import HTMLParser
from typing import Any

import torch
from checkpoints import ODD_NAMES, gaussian, small_model

import weightscope
from weightscope.comparing import Wide, _wide_rows, wide_columns
from weightscope.comparison import Comparison, compare_runs, metric_columns, pair_runs
from weightscope.run import Run
from weightscope.trajectory import Trajectory, trajectory_of

ATTACKS = (
    "</script><script>window.pwned = 1</script>",
    "<img src=x onerror='window.pwned = 1'>",
    '"><svg onload="window.pwned = 1">',
    "<!--<script>",
    "$title ${data} {{7*7}}",
    "endless." * 3000,
)
"""Names that would run something in a page that took them for markup."""


def _analysed(tensors: Mapping[str, torch.Tensor], **settings: Any) -> Run:
    metrics = ("alpha", "erg", "condition", "rank", "welore", "mp", "norms", "stats", "null")
    wanted = {"metrics": (*metrics, "shuffled", "noise", "reading"), "device": "cpu", "shuffled": 1}
    return weightscope.analyze(dict(tensors), **{**wanted, **settings})


@cache
def hostile_run() -> Run:
    """Every odd name there is, experts, a matrix of zeros, one with NaN, and ordinary blocks."""
    odd = {name: gaussian(12, 10, seed=n) for n, name in enumerate((*ODD_NAMES, *ATTACKS))}
    return _analysed(
        {
            **small_model(blocks=3, width=48),
            **odd,
            "model.layers.0.mlp.experts.down_proj": gaussian(4, 24, 20, seed=52),
            "zero.weight": torch.zeros(20, 12),
            "nan.weight": torch.full((9, 9), float("nan")),
        }
    )


@cache
def training() -> tuple[Run, ...]:
    """Three steps of one model, the last with a matrix more; embeddings shrink to rank two."""
    steps = []
    for scale in (1.0, 0.5, 0.05):
        tensors = small_model(blocks=2, width=48)
        for n, (name, tensor) in enumerate(tensors.items()):
            if tensor.ndim == 2 and tensor.is_floating_point():
                low = gaussian(tensor.shape[0], 2, seed=n) @ gaussian(2, tensor.shape[1], seed=n)
                tensors[name] = scale * tensor + low
        if scale < 0.1:
            tensors["lm_head.weight"] = gaussian(96, 48, seed=9)
        steps.append(_analysed(tensors))
    return tuple(steps)


def comparison() -> Comparison:
    """The first step of the training against the last."""
    a, _, b = training()
    return compare_runs(a, b, pair_runs(a, b))


def several() -> Wide:
    """All steps of the training beside the first."""
    runs, letters = training(), ["a", "b", "c"]
    rows = _wide_rows(runs, letters, [column.name for column in metric_columns()], ())
    names, columns = tuple(run.name for run in runs), tuple(wide_columns(3))
    provenance = tuple(run.provenance for run in runs)
    return Wide(names, tuple(letters), provenance, columns, tuple(rows), runs)


def trajectory() -> Trajectory:
    """The training at steps 100, 200 and 1000."""
    return trajectory_of((100, 200, 1000), training())


class Markup(HTMLParser):
    """What a page is made of.

    Attributes:
        tags: Names of its elements, in order.
        attributes: Name and value of every attribute.
        scripts: Type and text of every script.
        styles: Texts of its styles.
        text: All other text.
    """

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.scripts: list[tuple[str, str]] = []
        self.styles: list[str] = []
        self.text = ""
        self._inside = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(key, value or "") for key, value in attrs]
        self._inside = tag
        if tag == "script":
            self.scripts.append((dict(attrs).get("type") or "", ""))
        if tag == "style":
            self.styles.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif self._inside == "style":
            self.styles[-1] += data
        else:
            self.text += data

    def record(self) -> dict[str, Any]:
        """The data of the page."""
        (text,) = [text for kind, text in self.scripts if kind == "application/json"]
        return dict(json.loads(text))

    def policy(self) -> dict[str, str]:
        """The content security policy, by directive."""
        (text,) = [v for k, v in self.attributes if k == "content" and "default-src" in v]
        return dict(part.split(" ", 1) for part in text.split("; "))
