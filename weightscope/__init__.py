"""weightscope: what is inside this checkpoint?

import weightscope
run = weightscope.analyze("path/to/checkpoint")
run.to_dataframe()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

from weightscope.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path
    from typing import TypeAlias, Unpack

    import torch

    from weightscope.comparing import Wide
    from weightscope.comparison import Comparison
    from weightscope.keywords import AnalyzeOptions, CompareOptions, TrackOptions
    from weightscope.proposal import Proposal
    from weightscope.run import Run
    from weightscope.trajectory import Trajectory

    Model: TypeAlias = str | Path | torch.nn.Module | Mapping[str, torch.Tensor]
    RunOrModel: TypeAlias = Run | Model

__all__ = ["__version__", "analyze", "compare", "load_run", "propose", "track"]


def analyze(
    model: Model,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    **settings: Unpack[AnalyzeOptions],
) -> Run:
    """Analyse every weight matrix of a model.

    Args:
        model: Path of a safetensors file, folder or index; a hub id ``org/name``; a live
            ``torch.nn.Module``; or a mapping of names to tensors.
        out: Folder to keep the run in; nothing is kept where None.
        resume: Continue an interrupted run in ``out``.
        **settings: Fields of ``weightscope.settings.Settings``: ``metrics``, ``device``, ..., and
            of ``weightscope.checkpoint.Access``: ``fetch``, ``revision``, ``token``, ``mmap``; and
            of ``weightscope.placement.Placement``: ``executor``, ``ray_address``, ...

    Returns:
        A run: ``.rows``, ``.summary``, ``.to_dataframe()``, ``.spectrum(name)``.

    Raises:
        weightscope.errors.OptionError: No such option, or one that makes no sense.
        weightscope.errors.WeightscopeError: What else went wrong, in one sentence.
    """
    from pathlib import Path

    from weightscope import analysis, keywords

    wanted, access, placement = keywords.analysis_from(settings)
    saving = analysis.Saving(out is not None, Path(out) if out is not None else None, resume=resume)
    return analysis.analyze(model, wanted, saving, placement=placement, access=access)


@overload
def compare(a: RunOrModel, b: RunOrModel, /, **options: Unpack[CompareOptions]) -> Comparison: ...


@overload
def compare(
    a: RunOrModel,
    b: RunOrModel,
    c: RunOrModel,
    /,
    *more: RunOrModel,
    **options: Unpack[CompareOptions],
) -> Wide: ...


def compare(a: Any, b: Any, /, *more: Any, **options: Any) -> Comparison | Wide:
    """Tell what changed from one model to another, layer by layer.

    What is no run yet is analysed first. Where neither is one, the weights themselves are compared
    too: ``rel_change``, the spectrum of the difference, and a ``reading`` in one word::

        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        train(model)
        changed = weightscope.compare(before, model, metrics="alpha norms")
        changed.sentences
        changed.to_dataframe().sort_values("rel_change")[["name", "reading", "alpha_delta"]]

    Args:
        a: The first: a run, the folder of one, or whatever ``analyze`` takes.
        b: The second, likewise.
        *more: Others, each to be compared with the first, by their spectra alone.
        **options: ``weights``: compare the weights or do not; by default where neither is a run.
            ``map``: ``"FROM=TO"``, or several: names that begin with FROM are read as beginning
            with TO. ``force``: compare runs of different settings, or of models that have nothing
            in common, all the same. ``save``: keep runs of checkpoints as the command does, and use
            them again; False by default. And what models are analysed with: ``metrics``,
            ``device``, ``threads``, ``include``, ``revision``, ... as in ``analyze``.

    Returns:
        Of two: ``.rows``, ``.summary``, ``.sentences``, ``.to_dataframe()``, both ``.runs``. Of
        more: ``.rows``, ``.names``, ``.to_dataframe()``, ``.runs``. A notebook shows either as a
        table.

    Raises:
        weightscope.errors.IncomparableRunsError: The runs were made with different settings, or no
            matrix of one is in the other.
        weightscope.errors.OptionError: No such option, or one that makes no sense, such as
            ``weights`` where one side is a run.
        weightscope.errors.WeightscopeError: One of them cannot be read.
    """
    from weightscope import comparing, keywords

    keywords.check_known("compare", options, keywords.CompareOptions)
    how, models = keywords.comparing_from(options), (a, b, *more)
    return comparing.compare_many(models, how) if more else comparing.compare_models(models, how)[0]


@overload
def track(models: Mapping[int, RunOrModel], /, **options: Unpack[TrackOptions]) -> Trajectory: ...


@overload
def track(
    models: str | Path | Iterable[RunOrModel], /, **options: Unpack[TrackOptions]
) -> Trajectory: ...


def track(models: Any, /, **options: Any) -> Trajectory:
    """Follow every matrix over the checkpoints of a training, in the order of their steps.

    The step of a path comes from ``trainer_state.json``, else from the last number of its name;
    of models in memory you say it::

        weightscope.track("training")  # a folder that holds checkpoint-100, checkpoint-200, ...
        weightscope.track(["training/checkpoint-*", run], metric="spectral_norm")
        found = weightscope.track({0: untrained, 500: model})
        found.sentences
        found.to_dataframe()  # long form: step, name, metric, value

    Args:
        models: Runs, folders of runs, or whatever ``analyze`` takes, two at least; globs; a folder
            of checkpoints; or a mapping of steps to runs or models, such as the ``history`` of an
            observer of ``weightscope.integrations``, made a dict.
        **options: ``metric``: columns that the tables show, the first of them in notebooks; all
            of them by default. ``map``, ``force`` and ``save`` as in ``compare``; and what models
            are analysed with: ``metrics``, ``device``, ``threads``, ... as in ``analyze``.

    Returns:
        ``.steps``, ``.values(name, metric)``, ``.rows``, ``.summary``, ``.sentences``,
        ``.to_dataframe()``, ``.runs``. A notebook shows it as a table of sparklines.

    Raises:
        weightscope.errors.OptionError: Fewer than two, two of one step, one in memory without a
            step, or an option that does not exist or makes no sense.
        weightscope.errors.IncomparableRunsError: The runs were made with different settings, or
            one has no matrix that the first has.
        weightscope.errors.WeightscopeError: One of them cannot be read.
    """
    from weightscope import keywords, trajectory

    keywords.check_known("track", options, keywords.TrackOptions)
    how = keywords.comparing_from(options)
    metrics = keywords.texts(options.get("metric", ()))
    return trajectory.track(trajectory.listed(models), how, metrics=metrics)


def load_run(folder: str | Path) -> Run:
    """Read a saved run; needs neither the weights nor torch.

    Raises:
        weightscope.errors.RunFolderError: Not a finished run folder.
    """
    from pathlib import Path

    from weightscope.folders.storage import load_run as load

    return load(Path(folder))


def propose(run: Run, target: str, /, **options: Any) -> Proposal:
    """Turn a run into something that another tool consumes, as ``weightscope plan`` does.

    Args:
        run: A run, analysed or loaded.
        target: ``peft``, ``axolotl``, ``trl``, ``sparsity``, ``lr`` or ``bits``.
        **options: Fields of ``weightscope.plans.TARGET.Options``.

    Returns:
        The plan: ``.body``, ``.records``, and ``.sentences`` that explain it.

    Raises:
        weightscope.errors.OptionError: The run lacks what the plan needs, or an option makes no
            sense.
    """
    from weightscope.planning import options_for
    from weightscope.planning import propose as plan

    return plan(run, target, options_for(target, options))
