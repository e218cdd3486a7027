"""Names without what training wrappers put around the modules of a model."""

from __future__ import annotations

import re

_LEADING = re.compile(r"^(module\.|base_model\.model\.|_forward_module\.)+")
_ANYWHERE = re.compile(
    r"(?:^|(?<=\.))(_orig_mod|_fsdp_wrapped_module|_fpw_module|_checkpoint_wrapped_module)\."
)


def unwrapped(name: str) -> str:
    """A tensor name as the model itself has it.

    Known are DataParallel and DistributedDataParallel (``module``), ``torch.compile``
    (``_orig_mod``), FSDP, activation checkpointing, Lightning Fabric and PEFT's
    ``base_model.model``.
    """
    return _LEADING.sub("", _ANYWHERE.sub("", name))
