"""Mutations of what the readers of headers and indexes read: they agree, or end in a sentence.

The safetensors reader agrees with the reference library on every input or is stricter, and every
way in which it is stricter is listed and tested. Of the other readers nothing but a sentence comes.
"""

from __future__ import annotations

import copy
import json
import struct
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from checkpoints import entry, gaussian, raw_safetensors, write_file, write_sharded
from hostile.gguf import gguf_header, gguf_pair, gguf_tensor
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

import weightscope
from weightscope.errors import CheckpointError, WeightscopeError
from weightscope.formats import distributed, inert
from weightscope.formats.safetensors import read_header
from weightscope.layouts.config import model_facts
from weightscope.measure import reading
from weightscope.select import select_for
from weightscope.settings import Settings
from weightscope.sources import open_model
from weightscope.tensor import DTYPES

View = dict[str, tuple[tuple[int, ...], str]]
FEW, MANY = 200, 20_000


# --- the strict parser and the reference library ----------------------------------------------


def reference(path: Path) -> View | None:
    """What the library says of a file; None where it refuses it."""
    try:
        with safe_open(path, framework="np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {n: (tuple(s.get_shape()), s.get_dtype()) for n, s in slices.items()}
    except SafetensorError:
        return None


def ours(path: Path) -> View | str:
    """What we say of a file, or the sentence that refuses it."""
    try:
        return {ref.name: (ref.shape, ref.dtype) for ref in read_header(path).tensors}
    except CheckpointError as error:
        message = str(error)
        assert message.startswith(f"{path}: ") and message.isprintable() and len(message) < 1000
        return message


GOOD_ENTRY = '"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'


def _one(old: str = "", new: str = "") -> str:
    """The entry of a tensor ``w``, in which one thing is replaced."""
    return GOOD_ENTRY.replace(old, new) if old else GOOD_ENTRY


STRICTER: dict[str, tuple[str, str]] = {
    "a tensor's name twice": (f"{_one()},{_one()}", "appears twice in its header"),
    "a name in the metadata twice": (
        _one() + ',"__metadata__":{"a":"1","a":"2"}', "appears twice in its header"
    ),
    "more fields than three": (_one("}", ',"x":1}'), "is not dtype, shape and data_offsets"),
    "an entry that is a list": ('"w":["F32",[1],[0,4]]', "is not dtype, shape and data_offsets"),
    "a dtype that is an object": (_one('"F32"', '{"F32":null}'), "unknown dtype"),
    "a dimension of 2^63": (
        _one() + ',"v":{"dtype":"F32","shape":[0,9223372036854775808],"data_offsets":[4,4]}',
        "impossible shape",
    ),
    "more than 64 dimensions": (
        _one("[1]", "[" + ",".join(["1"] * 65) + "]"), "65 dimensions, more than 64"
    ),
    "a mebibyte of brackets": (
        _one() + ',"__metadata__":{"a":"' + "[" * (1 << 20) + '"}', "too many lists"
    ),
    "a space before the brace": (" ", "not a JSON object"),
}  # fmt: skip
"""All ways in which we are stricter: files that the library reads, and what we say of them."""


@pytest.mark.parametrize("kind", STRICTER)
def test_where_we_are_stricter(kind: str, tmp_path: Path) -> None:
    text, says = STRICTER[kind]
    path = tmp_path / "model.safetensors"
    whole = f"{{{text}}}" if text.strip() else f" {{{_one()}}}"
    path.write_bytes(raw_safetensors(whole, bytes(4)))
    assert reference(path) is not None
    assert says in ours(path)


def agree(content: bytes) -> None:
    """Both refuse, or both describe alike, or we refuse for a reason of the list."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.safetensors"
        path.write_bytes(content)
        theirs, mine = reference(path), ours(path)
        if isinstance(mine, str):
            assert theirs is None or any(says in mine for _, says in STRICTER.values()), mine
        else:
            assert theirs == mine


GOOD = save({"w": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.bfloat16)})
ATOMS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([0, 1, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -1]),
    st.integers(0, 16),
    st.floats(),
    st.text(max_size=4),
    st.sampled_from([*DTYPES, "__metadata__", "w", "-0"]),
)
VALUES = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
COUNTS = st.integers(0, 12)
NEARLY = st.fixed_dictionaries(
    {
        "dtype": st.one_of(st.sampled_from(list(DTYPES)), ATOMS),
        "shape": st.one_of(st.lists(COUNTS, max_size=3), st.lists(ATOMS, max_size=3), VALUES),
        "data_offsets": st.one_of(st.tuples(COUNTS, COUNTS).map(sorted), VALUES),
    },
    optional={"more": VALUES},
)
HEADERS = st.dictionaries(
    st.one_of(st.sampled_from(["w", "b", "__metadata__"]), st.text(max_size=3)),
    st.one_of(NEARLY, NEARLY, VALUES),
    max_size=3,
)
PIECES = st.sampled_from(
    ['{', '}', '[', ']', ',', ':', '"', '"w"', '"dtype"', '"F32"', '"shape"', '"data_offsets"',
     '0', '1', '4', '-0', '1e0', '0x1', '01', 'NaN', 'null', 'true', ' ', '\n', '\\u0000',
     '"__metadata__"', '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}', '"w":', '{"w":']
)  # fmt: skip
EDITS = st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.binary(max_size=3)), max_size=4)
WELL = {
    "__metadata__": {"format": "pt"},
    "a": entry("F32", (2, 3), (0, 24)),
    "b": entry("BF16", (4,), (24, 32)),
    "c": entry("F4", (2,), (32, 33)),
    "d": entry("I64", (0, 5), (33, 33)),
}
"""A header of a file with 33 bytes of tensors."""


@st.composite
def nearly_well(draw: st.DrawFn) -> bytes:
    """A good header in which a few values, anywhere, were replaced, moved or removed."""
    header: Any = copy.deepcopy(WELL)
    for _ in range(draw(st.integers(1, 3))):
        inside, key = header, draw(st.sampled_from(sorted(header) or ["a"]))
        while isinstance(inside.get(key) if isinstance(inside, dict) else inside[key], dict | list):
            further = inside[key]
            keys = sorted(further) if isinstance(further, dict) else list(range(len(further)))
            if not keys or draw(st.booleans()):
                break
            inside, key = further, draw(st.sampled_from(keys))
        kind = draw(st.sampled_from(["replace", "shift", "remove", "rename"]))
        value = inside[key] if not isinstance(inside, dict) else inside.get(key)
        if kind == "shift" and type(value) is int:
            inside[key] = value + draw(st.integers(-9, 9))
        elif kind == "remove" and isinstance(inside, dict):
            inside.pop(key, None)
        elif kind == "rename" and isinstance(inside, dict):
            inside[draw(st.sampled_from(["a", "b", "dtype", "shape", "__metadata__"]))] = value
        else:
            inside[key] = draw(ATOMS)
    text = json.dumps(header)
    return raw_safetensors(text, bytes(max(0, 33 + draw(st.sampled_from([0, 0, 0, -1, 1, 8])))))


def edited(edits: list[tuple[int, bytes]]) -> None:
    """Bytes of a good file are replaced."""
    content = bytearray(GOOD)
    for place, replacement in edits:
        content[place : place + max(1, len(replacement))] = replacement
    agree(bytes(content))


def described(header: Any, size: int) -> None:
    """A header of values of any kind."""
    agree(raw_safetensors(json.dumps(header), bytes(size)))


def pieced(pieces: list[str]) -> None:
    """A header of pieces of text."""
    agree(raw_safetensors("".join(pieces), bytes(4)))


@pytest.mark.parametrize(
    ("header", "size"),
    [
        ({"w": entry("F32", (2**40, 2**40, 0), (0, 0))}, 0),
        ({"w": entry("F4", (3,), (0, 1))}, 1),
        ({"w": entry("F6_E2M3", (4,), (0, 3))}, 3),
        ({"__metadata__": {"a": "\ud800"}}, 0),
    ],
)
def test_headers_that_were_told_apart_once(header: Any, size: int) -> None:
    described(header, size)


@pytest.mark.parametrize("offsets", ["[-0,4]", "[0,-0]"])
@pytest.mark.parametrize("shape", ["[-0]", "[1]", "[1.0]", "[1e0]", "[01]"])
def test_numbers_that_were_told_apart_once(shape: str, offsets: str) -> None:
    pieced(["{", _one("[1]", shape).replace("[0,4]", offsets), "}"])


# --- the other readers: nothing but a sentence ------------------------------------------------


@contextmanager
def sentences() -> Iterator[Path]:
    """A folder; what is raised while it is there has to be a sentence."""
    with tempfile.TemporaryDirectory() as name:
        try:
            yield Path(name)
        except WeightscopeError as error:
            assert str(error) and "\n" not in str(error) and len(str(error)) < 2000


def taken(folder: Path) -> None:
    """Index a model, decide what it holds, and read all of it that can be read."""
    checkpoint = open_model(folder)
    model_facts(checkpoint.config).as_text()
    select_for(checkpoint, Settings())
    kinds = ("float", "integer")
    plain = [ref for ref in checkpoint.tensors if DTYPES[ref.dtype].kind in kinds]
    with reading(checkpoint) as read:
        for ref in plain:
            read(ref, None)


NUMBERS = st.sampled_from(
    [0, 1, 2, 31, 2**31, 2**32 - 1, 2**40, 2**60, 2**63 - 1, 2**63, 2**64 - 1]
)
GGUF = gguf_header(
    count=2,
    tensors=gguf_tensor(b"blk.0.attn_q.weight", (32, 4)) + gguf_tensor(b"v", (8, 2, 3), 1, 512),
    keys=3,
    pairs=gguf_pair(b"general.architecture", 8, struct.pack("<Q", 5) + b"llama")
    + gguf_pair(b"llama.block_count", 4, struct.pack("<I", 2))
    + gguf_pair(b"words", 9, struct.pack("<IQ", 8, 2) + 2 * (struct.pack("<Q", 1) + b"a")),
)
HEAD = len(GGUF) - 4096


def gguf(numbers: list[tuple[int, int]], edits: list[tuple[int, bytes]], cut: int) -> None:
    """Numbers and bytes of a header are replaced, and the file is cut."""
    content = bytearray(GGUF)
    for place, number in numbers:
        struct.pack_into("<Q", content, place, number)
    for place, replacement in edits:
        content[place : place + len(replacement)] = replacement
    with sentences() as folder:
        (folder / "model.gguf").write_bytes(content[: len(content) - cut])
        taken(folder)


def index(weight_map: Any, rest: dict[str, Any]) -> None:
    """An index with values of any kind beside good shards."""
    with sentences() as folder:
        write_sharded(folder, {"a": gaussian(4, 3), "b": gaussian(3, 4)}, shards=2)
        whole = {"weight_map": weight_map, **rest}
        (folder / "model.safetensors.index.json").write_text(json.dumps(whole))
        taken(folder)


def config(values: dict[str, Any]) -> None:
    """A configuration of values of any kind beside weights that it could divide."""
    with sentences() as folder:
        name = "model.layers.0.self_attn.qkv_proj.weight"
        tensors = {name: gaussian(24, 8), "model.embed_tokens.weight": gaussian(9, 8)}
        write_file(folder / "model.safetensors", tensors)
        (folder / "config.json").write_text(json.dumps(values))
        taken(folder)


def adapter(values: Any) -> None:
    """The configuration of an adapter."""
    with sentences() as folder:
        name = "base_model.model.q_proj.lora_{}.weight"
        tensors = {name.format("A"): gaussian(4, 8), name.format("B"): gaussian(8, 4)}
        write_file(folder / "adapter_model.safetensors", tensors)
        (folder / "adapter_config.json").write_text(json.dumps(values))
        taken(folder)


def quantisation(values: dict[str, Any], shapes: list[tuple[int, int]]) -> None:
    """What a configuration says of codes and scales of any shape."""
    codes, scales, groups = shapes
    tensors = {
        "m.qweight": torch.zeros(codes, dtype=torch.int32),
        "m.scales": torch.ones(scales),
        "m.qzeros": torch.zeros(groups, dtype=torch.int32),
        "m.g_idx": torch.zeros(codes[0], dtype=torch.int32),
        "n.weight_packed": torch.zeros(codes, dtype=torch.int32),
        "n.weight_scale": torch.ones(scales),
        "n.weight_shape": torch.tensor(groups),
        "o.weight": torch.zeros(codes).to(torch.float8_e4m3fn),
        "o.weight_scale_inv": torch.ones(scales),
    }
    with sentences() as folder:
        write_file(folder / "model.safetensors", tensors)
        (folder / "config.json").write_text(json.dumps({"quantization_config": values}))
        weightscope.analyze(folder, metrics=("norms",), threads=1)


NAMES = sorted({*distributed._ALLOWED, ("os", "system"), ("builtins", "eval"), ("builtins", "set")})
PLAIN_OPCODES = b"().]}aebsutR0125NQ" + bytes(range(0x81, 0x95))
OPCODES = st.one_of(
    st.sampled_from(NAMES).map(lambda name: f"c{name[0]}\n{name[1]}\n".encode()),
    st.sampled_from([bytes([code]) for code in PLAIN_OPCODES]),
    st.binary(max_size=3).map(lambda raw: b"U" + bytes([len(raw)]) + raw),
    st.text("ab./", max_size=3).map(lambda t: b"X" + struct.pack("<I", len(t)) + t.encode()),
    st.integers(0, 255).map(lambda n: b"K" + bytes([n])),
    st.integers(0, 3).map(lambda n: b"q" + bytes([n])),
    st.integers(0, 3).map(lambda n: b"h" + bytes([n])),
    st.integers(-(2**79), 2**79 - 1).map(
        lambda n: b"\x8a\x0a" + n.to_bytes(10, "little", signed=True)
    ),
)  # fmt: skip


def program(opcodes: list[bytes]) -> None:
    """A pickle of any opcodes, which must neither run nor fail in another way."""
    with suppress(ValueError):
        inert.load(b"\x80\x04" + b"".join(opcodes) + b".", distributed._ALLOWED)


def metadata(edits: list[tuple[int, bytes]], spliced: list[bytes], place: int) -> None:
    """Bytes of good metadata are replaced, and opcodes put in."""
    content = bytearray(good_metadata())
    for at, replacement in edits:
        content[at % len(content) : at % len(content) + len(replacement)] = replacement
    content[place % len(content) : place % len(content)] = b"".join(spliced)
    with sentences() as folder:
        (folder / ".metadata").write_bytes(content)
        (folder / "__0_0.distcp").write_bytes(b"")
        open_model(folder)


@cache
def good_metadata() -> bytes:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"a": gaussian(4, 3), "b": {"c": gaussian(2, 2)}}, checkpoint_id=folder)
        return (Path(folder) / ".metadata").read_bytes()


KEYS = st.sampled_from([
    "model_type", "num_attention_heads", "num_key_value_heads", "hidden_size", "head_dim",
    "num_hidden_layers", "vocab_size", "architectures", "text_config", "vision_config",
    "attn_config", "num_local_experts", "tie_word_embeddings", "layer_types", "quantization_config",
])  # fmt: skip
FAMILIES = st.sampled_from(["phi3", "qwen2", "gpt_neox", "falcon", "x", "", None, 3])
CONFIGS = st.builds(
    lambda values, family: {**values, "model_type": family},
    st.dictionaries(KEYS, VALUES, max_size=4),
    FAMILIES,
)
PEFT = st.dictionaries(
    st.sampled_from([
        "r", "lora_alpha", "peft_type", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora",
        "fan_in_fan_out", "target_parameters", "init_lora_weights", "lora_bias", "use_qalora",
    ]),
    VALUES,
    max_size=4,
)  # fmt: skip
SETTINGS = st.builds(
    lambda values, method: {**values, "quant_method": method},
    st.dictionaries(
        st.sampled_from([
            "bits", "group_size", "format", "config_groups", "weight_block_size", "desc_act",
            "sym", "ignore", "modules_to_not_convert", "zero_point", "version", "checkpoint_format",
        ]),
        st.one_of(VALUES, st.integers(-1, 9)),
        max_size=4,
    ),
    st.sampled_from(["gptq", "awq", "compressed-tensors", "fp8", "hqq", "x", None, 7]),
)  # fmt: skip
SHARDS = st.one_of(
    st.sampled_from(["model-00001-of-00002.safetensors", "../x", "", ".", "nothing"]), ATOMS
)
SHAPES = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=3, max_size=3)
AT = st.integers(0, HEAD - 8)
PLACES = st.integers(0, 5000)
PATCHES = st.lists(st.tuples(PLACES, st.binary(min_size=1, max_size=3)), max_size=3)

Fuzz = tuple[Callable[..., None], tuple[st.SearchStrategy[Any], ...]]
FUZZES: dict[str, Fuzz] = {
    "edited": (edited, (EDITS,)),
    "described": (described, (HEADERS, st.integers(0, 24))),
    "pieced": (pieced, (st.lists(PIECES, max_size=12),)),
    "nearly well": (agree, (nearly_well(),)),
    "GGUF": (
        gguf,
        (
            st.lists(st.tuples(AT, NUMBERS), max_size=2),
            st.lists(st.tuples(AT, st.binary(max_size=3)), max_size=2),
            st.sampled_from([0, 0, 0, 1, 4000, 4096, 4200]),
        ),
    ),
    "index": (
        index,
        (
            st.one_of(st.dictionaries(st.sampled_from("abc"), SHARDS, max_size=3), VALUES),
            st.dictionaries(st.sampled_from(["metadata", "weight_map"]), VALUES, max_size=1),
        ),
    ),
    "config": (config, (CONFIGS,)),
    "adapter": (adapter, (st.one_of(PEFT, PEFT, VALUES),)),
    "quantisation": (quantisation, (SETTINGS, SHAPES)),
    "pickle": (program, (st.lists(OPCODES, max_size=12),)),
    "metadata": (metadata, (PATCHES, st.lists(OPCODES, max_size=2), PLACES)),
}
SLOW = {"config": 0.3, "quantisation": 0.2, "index": 0.5, "adapter": 0.5}
"""Share of the examples, where one of them takes long."""


def holds(name: str, examples: int) -> None:
    """A property on examples that are the same in every run."""
    check, strategies = FUZZES[name]
    limits = settings(
        max_examples=int(examples * SLOW.get(name, 1)),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    limits(given(*strategies)(check))()


@pytest.mark.parametrize("name", FUZZES)
def test_mutations_agree_or_end_in_a_sentence(name: str) -> None:
    modules = set(sys.modules)
    holds(name, FEW)
    if name == "pickle":
        assert set(sys.modules) == modules, "a name of a pickle was imported"


@pytest.mark.slow
@pytest.mark.parametrize("name", FUZZES)
def test_many_mutations_agree_or_end_in_a_sentence(name: str) -> None:
    holds(name, MANY)
