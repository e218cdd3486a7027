"""weightscope: what is inside this checkpoint?

import weightscope
run = weightscope.analyze("path/to/checkpoint")
run.to_dataframe()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from weightscope.version import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from weightscope.proposal import Proposal
    from weightscope.run import Run

__all__ = ["__version__", "analyze", "load_run", "propose"]


def analyze(
    model: Any, *, out: str | Path | None = None, resume: bool = False, **settings: Any
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
        weightscope.errors.WeightscopeError: What went wrong, in one sentence.
    """
    import os
    from dataclasses import fields
    from pathlib import Path

    from weightscope import analysis
    from weightscope.checkpoint import Access
    from weightscope.placement import Placement
    from weightscope.settings import Settings, parse_floor
    from weightscope.share import share_from

    if isinstance(settings.get("eval_floor"), str):
        settings["eval_floor"] = parse_floor(settings["eval_floor"])
    if isinstance(settings.get("metrics"), str):
        settings["metrics"] = tuple(settings["metrics"].replace(",", " ").split())
    if isinstance(settings.get("shard"), str):
        settings["shard"] = share_from(settings["shard"], os.environ)[0]
    reach = {f.name: settings.pop(f.name) for f in fields(Access) if f.name in settings}
    where = {f.name: settings.pop(f.name) for f in fields(Placement) if f.name in settings}
    placement, access = Placement(**where), Access(**reach)
    saving = analysis.Saving(out is not None, Path(out) if out is not None else None, resume=resume)
    return analysis.analyze(model, Settings(**settings), saving, placement=placement, access=access)


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
