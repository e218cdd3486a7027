"""Low-rank adapters: which stored tensors are the factors of which weight's update.

Three habits of naming are known: PEFT's (``lora_A``, ``lora_B`` and an ``adapter_config.json``),
kohya's (``lora_down``, ``lora_up`` and a scalar ``alpha``), and diffusers' (``lora.down``,
``lora.up``, or PEFT's). Every pair becomes one virtual tensor with the name and shape of the weight
that it updates; other tensors pass as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite, prod
from typing import Any, NoReturn

from weightscope.errors import CheckpointError
from weightscope.layouts.roles import role_of
from weightscope.matrix import Product
from weightscope.tensor import DTYPES, TensorRef
from weightscope.text import shortened

CONFIG = "adapter_config"
"""Key of a checkpoint's configuration under which ``adapter_config.json`` is kept."""
_FACTORS = {
    "lora_A": "A", "lora_B": "B", "lora_embedding_A": "A", "lora_embedding_B": "B",
    "lora_down": "A", "lora_up": "B", "lora.down": "A", "lora.up": "B",
    "lora_linear_layer.down": "A", "lora_linear_layer.up": "B",
    "lora_magnitude_vector": "magnitude", "dora_scale": "dora_scale", "alpha": "alpha",
}  # fmt: skip
_NAME = re.compile(
    r"^(?P<module>.+?)[._](?P<key>" + "|".join(map(re.escape, _FACTORS)) + r")"
    r"(?:\.(?P<adapter>[^.]+?))??(?:\.weight)?$"
)
_OTHER_KINDS = (
    (re.compile(r"\.hada_w[12](_[ab])?$"), "LoHa"),
    (re.compile(r"\.lokr_w[12](_[ab])?$"), "LoKr"),
    (re.compile(r"\.(boft_[Rs]|boft_R\.[^.]+)$"), "BOFT"),
    (re.compile(r"\.(oft_(blocks|diag|R|r)|oft_R\.weight)$"), "OFT"),
    (re.compile(r"\.ia3_l$"), "IA3"),
    (re.compile(r"\.vera_lambda_[bd]$"), "VeRA"),
    (re.compile(r"\.lora_E$"), "AdaLoRA"),
    (re.compile(r"\.lora_mid\.weight$"), "LoCon with a Tucker core"),
    (re.compile(r"(^|\.)prompt_embeddings$"), "prompt or prefix tuning"),
    (re.compile(r"\.poly_lora_[AB]$"), "Poly"),
    (re.compile(r"\.vblora_(logits|vector_bank)\w*$"), "VB-LoRA"),
    (re.compile(r"\.fourierft_spectrum$"), "FourierFT"),
    (re.compile(r"\.bone_block$"), "Bone"),
    (re.compile(r"\.hra_u$"), "HRA"),
)
_VARIANTS = {
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
}
_INITS = {
    "pissa": "PiSSA",
    "olora": "OLoRA",
    "corda": "CorDA",
    "loftq": "LoftQ",
    "lora_ga": "LoRA-GA",
}
DERIVED = frozenset({"DoRA", "PiSSA", "OLoRA"})
"""Kinds whose update follows from the factors and the base weight."""
_QUANTIFIERS = 3


@dataclass(frozen=True)
class Placed:
    """The tensors of a checkpoint, factors replaced by what they are factors of.

    Attributes:
        tensors: Ordinary tensors, and one virtual tensor per update.
        products: The update behind each virtual tensor, by its name.
        refused: Ordinary or virtual tensors that are no weights to analyse, and why.
    """

    tensors: tuple[TensorRef, ...]
    products: Mapping[str, Product] = field(default_factory=dict)
    refused: tuple[tuple[TensorRef, str], ...] = ()


@dataclass(frozen=True)
class _Pieces:
    """The stored tensors of one update."""

    module: str
    adapter: str
    refs: Mapping[str, TensorRef]
    embedding: bool

    @property
    def path(self) -> str:
        """The module as the base model calls it."""
        return self.module.replace(".base_layer", "")

    @property
    def file(self) -> str:
        return next(iter(self.refs.values())).file or "state dict"


def alphas_in(tensors: Sequence[TensorRef]) -> list[TensorRef]:
    """The scalars that have to be read before the factors can be placed.

    Raises:
        CheckpointError: One of them is no scalar.
    """
    found = [ref for ref in tensors if ref.name.endswith(".alpha")]
    modules = {
        match["module"] for match in map(_factor, tensors) if match and match["key"] != "alpha"
    }
    found = [ref for ref in found if ref.name.removesuffix(".alpha") in modules]
    for ref in found:
        if ref.size != 1 or DTYPES[ref.dtype].kind not in {"float", "integer"}:
            shape = list(ref.shape)
            _refuse(
                ref.file,
                f"{shortened(ref.name)} is to be the alpha of an adapter, but it has the shape "
                f"{shape} and the dtype {ref.dtype}",
            )
    return found


def place(
    tensors: Sequence[TensorRef], config: Mapping[str, Any], alphas: Mapping[str, float]
) -> Placed:
    """Find the updates among the tensors of a checkpoint.

    Args:
        tensors: What is stored.
        config: ``adapter_config.json``; empty where there is none.
        alphas: Values of the scalars of ``alphas_in``, by name.

    Raises:
        CheckpointError: Another kind of adapter, or factors that do not belong together.
    """
    _refuse_other_kinds(tensors, config)
    groups, rest = _grouped(tensors)
    if not groups:
        return Placed(tuple(tensors))
    several = len({group.adapter for group in groups}) > 1
    live = any(ref.name.endswith(".base_layer.weight") for ref in rest) and not config
    names = _parameter_names(groups, config)
    placed: list[TensorRef] = []
    products: dict[str, Product] = {}
    refused: list[tuple[TensorRef, str]] = []
    for group in groups:
        parameter = names.get(group.module, "")
        weight = parameter or f"{_dotted(group.path)}.weight"
        name = f"{weight.removesuffix('.weight')}.lora.{group.adapter}.weight"
        product, shape, why = _product(group, parameter, config, alphas)
        product = replace(product, weight=weight)
        kinds = [product.A, product.B]
        dtype = next((r.dtype for r in kinds if DTYPES[r.dtype].kind != "float"), product.A.dtype)
        ref = replace(product.A, name=name if several or live else weight, shape=shape, dtype=dtype)
        placed.append(ref)
        products[ref.name] = product
        refused += [(ref, why)] if why else []
    for ref in rest:
        if config and ref.name.endswith(".base_layer.weight"):
            refused.append((ref, "it is the adapter file's copy of a weight of the base model"))
    return Placed((*rest, *placed), products, tuple(refused))


def _refuse(file: str, why: str) -> NoReturn:
    raise CheckpointError(f"{file}: {why}; save the adapter again, or correct its config")


def _factor(ref: TensorRef) -> re.Match[str] | None:
    known = any(word in ref.name for word in ("lora", "alpha", "dora_scale"))
    return _NAME.match(ref.name) if known and len(ref.name) < 1000 else None


def _refuse_other_kinds(tensors: Sequence[TensorRef], config: Mapping[str, Any]) -> None:
    file = next((ref.file for ref in tensors), "") or "state dict"
    kind = str(config.get("peft_type", "LORA")).upper().removeprefix("PEFTTYPE.")
    # a whole model may lie beside the configuration of an adapter
    bare = all(ref.file.replace("\\", "/").split("/")[-1].startswith("adapter_") for ref in tensors)
    own = bare or any(map(_factor, tensors))
    named = [(own, kind)] if kind != "LORA" else []
    named += [(own and bool(config.get(key)), label) for key, label in _VARIANTS.items()]
    for pattern, label in _OTHER_KINDS:
        named.append((any(pattern.search(ref.name[-80:]) for ref in tensors), label))
    for applies, label in named:
        if applies:
            raise CheckpointError(
                f"{file}: is an adapter of the kind {shortened(label)}; of adapters only LoRA can "
                "be read, so merge it into its base model first"
            )


def _grouped(tensors: Sequence[TensorRef]) -> tuple[list[_Pieces], list[TensorRef]]:
    """Factors by module and adapter, and all other tensors."""
    found: dict[tuple[str, str], dict[str, TensorRef]] = {}
    embeddings = set()
    rest = []
    alphas = {ref.name for ref in alphas_in(tensors)}
    for ref in tensors:
        match = _factor(ref)
        if match is None or (match["key"] == "alpha" and ref.name not in alphas):
            rest.append(ref)
            continue
        if ref.name.endswith(".bias"):
            rest.append(ref)
            continue
        place_of_it = _plain(match["module"]), match["adapter"] or "default"
        found.setdefault(place_of_it, {})[_FACTORS[match["key"]]] = ref
        if match["key"].startswith("lora_embedding"):
            embeddings.add(place_of_it)
    pieces = [_Pieces(*key, refs, key in embeddings) for key, refs in found.items()]
    for piece in pieces:
        _check_partners(piece)
    return pieces, rest


def _plain(module: str) -> str:
    while module.startswith("base_model.model."):
        module = module.removeprefix("base_model.model.")
    return module.replace(".processor.", ".")


def _check_partners(piece: _Pieces) -> None:
    for have, lacks in (("A", "B"), ("B", "A")):
        if have in piece.refs and lacks not in piece.refs:
            stored = shortened(piece.refs[have].name)
            _refuse(
                piece.file, f"{stored} has no partner: the factor {lacks} of its update is missing"
            )
    if "A" not in piece.refs:
        stored = shortened(next(iter(piece.refs.values())).name)
        _refuse(piece.file, f"{stored} belongs to an update without factors")


_COMPOUNDS = re.compile(
    r"(?<![A-Za-z])(self_attn|attn1|attn2|mlp|ff_context|ff|net|text_model|encoder|unet)_(?=[a-z\d])"
)


def _dotted(module: str) -> str:
    """A module path whose dots kohya's trainers replaced by underscores, as far as can be told."""
    head, _, path = module.partition("_")
    if head != "lora" or "." in module:
        return module
    path = re.sub(r"_(\d+)(?=_|$)", r".\1", path)
    path = re.sub(r"\.(\d+)_", r".\1.", path)
    return _COMPOUNDS.sub(r"\1.", path)


def underscored(name: str) -> str:
    """What is left of a weight's name when dots and underscores count as one."""
    return name.removesuffix(".weight").replace(".", "_")


def _product(
    group: _Pieces, parameter: str, config: Mapping[str, Any], alphas: Mapping[str, float]
) -> tuple[Product, tuple[int, ...], str]:
    """The update, its shape as the weight is stored, and why it cannot be analysed or nothing."""
    A, B = group.refs["A"], group.refs["B"]
    if len(A.shape) < 2 or len(A.shape) != len(B.shape) or prod(B.shape[2:]) != 1:
        _refuse(
            group.file,
            f"{shortened(B.name)} has the shape {list(B.shape)}, which does not belong to "
            f"{list(A.shape)} of its partner {shortened(A.name)}",
        )
    if not A.shape[0]:
        _refuse(group.file, f"{shortened(A.name)} has rank 0, so it is no factor")
    if A.shape[0] != B.shape[1]:
        _refuse(
            group.file,
            f"{shortened(A.name)} has rank {A.shape[0]}, but its partner {shortened(B.name)} has "
            f"{B.shape[1]} (shapes {list(A.shape)} and {list(B.shape)})",
        )
    key = parameter or group.path
    rank, experts = _rank(group, key, config)
    transposed = group.embedding or (bool(config.get("fan_in_fan_out")) and len(A.shape) == 2)
    shape = (B.shape[0], *A.shape[1:])
    shape = shape[::-1] if transposed else shape
    if experts > 1:
        shape = (experts, B.shape[0], A.shape[1])
    needs = _needs(group, config)
    product = Product(
        A, B, _scale(group, key, rank, config, alphas), rank, "", transposed, experts,
        needs, group.refs.get("magnitude"),
    )  # fmt: skip
    why = "it is a DoRA in another form than PEFT's" if "dora_scale" in group.refs else ""
    return product, shape, why


def _rank(group: _Pieces, key: str, config: Mapping[str, Any]) -> tuple[int, int]:
    """Rank of one update, and how many experts the factors stack."""
    stored = group.refs["A"].shape[0]
    if not config:
        return stored, 1
    pattern = _pattern_value(config, "rank_pattern", key, group)
    rank: Any = config.get("r", stored) if pattern is None else pattern
    if type(rank) is int and rank > 0:
        if rank == stored:
            return stored, 1
        if stored % rank == 0 and config.get("target_parameters"):
            return rank, stored // rank
    name = shortened(group.refs["A"].name)
    _refuse(group.file, f"{name} has rank {stored}, but its config says {shortened(str(rank))}")


def _scale(
    group: _Pieces, key: str, rank: int, config: Mapping[str, Any], alphas: Mapping[str, float]
) -> float:
    """alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA; 1 where no alpha is known."""
    ref = group.refs.get("alpha")
    if ref is not None:
        alpha: Any = alphas[ref.name]
        what = f"{shortened(ref.name)} is"
    elif config:
        alpha = _pattern_value(config, "alpha_pattern", key, group)
        alpha = config.get("lora_alpha", 8) if alpha is None else alpha
        what = f"adapter_config.json gives {shortened(group.path)} an alpha of"
    else:
        return 1.0
    number = isinstance(alpha, int | float) and not isinstance(alpha, bool)
    if not number or abs(alpha) > 1e300 or not isfinite(alpha):
        _refuse(group.file, f"{what} {shortened(str(alpha))}, no finite number")
    return float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)


def _pattern_value(
    config: Mapping[str, Any], field_name: str, key: str, group: _Pieces
) -> int | float | None:
    """The value of the first pattern that matches the module, as PEFT matches them."""
    patterns = config.get(field_name) or {}
    if not isinstance(patterns, Mapping):
        _refuse(group.file, f"{field_name} of adapter_config.json is no dictionary")
    for pattern, value in patterns.items():
        try:
            if len(key) < 500 and re.match(rf"(.*\.)?({_simple(pattern)})$", key):
                return value if isinstance(value, int | float) else float("nan")
        except (re.error, OverflowError):
            _refuse(
                group.file,
                f"{field_name} of adapter_config.json holds {shortened(pattern)}, which is no "
                "regular expression that can be matched safely",
            )
    return None


def _simple(pattern: str) -> str:
    """The pattern itself, unless matching it could take forever.

    Raises:
        re.error: It repeats a group, or repeats too often.
    """
    bare = re.sub(r"\\.", "", pattern)
    if len(pattern) > 500 or re.search(r"\)[*+{]", bare):
        raise re.error("repeats a group")
    if len(re.findall(r"[*+{]", bare)) > _QUANTIFIERS:
        raise re.error("repeats too often")
    return pattern


def _needs(group: _Pieces, config: Mapping[str, Any]) -> str:
    """What kind of update needs the base weight; empty for plain LoRA."""
    if "magnitude" in group.refs or config.get("use_dora"):
        return "DoRA"
    if group.embedding or len(group.refs["A"].shape) > 2:
        return ""  # these are initialised as plain LoRA
    init = str(config.get("init_lora_weights", "")).lower()
    return next((label for key, label in _INITS.items() if init.startswith(key)), "")


def _parameter_names(groups: Sequence[_Pieces], config: Mapping[str, Any]) -> dict[str, str]:
    """Names of updated parameters that are no module's ``weight``, by stored module.

    Two parameters of one module are stored as nested wrappers, the first one innermost. Which is
    which is told by their shapes: what a down projection puts out, the other takes in.
    """
    targets = config.get("target_parameters") or ()
    targets = [t for t in targets if isinstance(t, str)] if isinstance(targets, list) else []
    modules: dict[str, list[_Pieces]] = {}
    for group in groups:
        modules.setdefault(group.path, []).append(group)
    names: dict[str, str] = {}
    for path, nested in modules.items():
        keys = {f"{path}.{target.rpartition('.')[2]}" for target in targets}
        known = [k for k in keys if any(k == t or k.endswith(f".{t}") for t in targets)]
        known.sort(key=lambda k: ("down" in role_of(k), k))
        nested = sorted(nested, key=lambda g: -g.module.count(".base_layer"))
        if len(nested) == 2 and len(known) == 2 and _swapped(*nested):
            known.reverse()
        names |= {group.module: name for group, name in zip(nested, known, strict=False)}
    return names


def _swapped(inner: _Pieces, outer: _Pieces) -> bool:
    """Whether the inner of two wrappers is the down projection, and the outer is none."""

    def follows(down: _Pieces, up: _Pieces) -> bool:
        return down.refs["B"].shape[0] == up.refs["A"].shape[1]

    return follows(inner, outer) and not follows(outer, inner)
