"""Quantised weights: found by name and shape, decoded as the libraries that packed them do."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import environment
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from weightscope.encoded import DecodingError, Encoded, Unplaced
from weightscope.encodings.bits import fields, unpack
from weightscope.encodings.blocks import block_length
from weightscope.encodings.grid import Decoded, noise_floor
from weightscope.encodings.schemes import (
    Findings,
    decode,
    descriptors,
    deviations,
    find,
    quantization_config,
)
from weightscope.tensor import DTYPES, TensorRef

FOLDER = Path(__file__).parent / "data" / "quantised"
X = "model.layers.0.mlp.down_proj"
CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.bool: "BOOL",
}
Tensors = Mapping[str, torch.Tensor]

ENCODINGS = {
    "auto-gptq-int3": "gptq-int3-g32",
    "auto-gptq-int4": "gptq-int4-g32",
    "awq-int4": "awq-int4-g32",
    "bnb-fp4-double-bf16": "bitsandbytes-fp4-double-b64",
    "bnb-int8": "bitsandbytes-int8",
    "bnb-nf4": "bitsandbytes-nf4-b64",
    "bnb-nf4-double": "bitsandbytes-nf4-double-b64",
    "ct-fp8-channel": "fp8-e4m3-channel",
    "ct-fp8-tensor": "fp8-e4m3-tensor",
    "ct-int-quantized-channel": "compressed-tensors-int8-channel",
    "ct-int-quantized-group-asym": "compressed-tensors-int8-g35-asym",
    "ct-int3-g20-asym": "compressed-tensors-int3-g20-asym",
    "ct-int4-actorder": "compressed-tensors-int4-g16-act",
    "ct-int4-channel-ragged": "compressed-tensors-int4-channel",
    "ct-int4-g16": "compressed-tensors-int4-g16",
    "ct-int4-g32-asym": "compressed-tensors-int4-g32-asym",
    "ct-int6-g10": "compressed-tensors-int6-g10",
    "ct-int8-channel-asym": "compressed-tensors-int8-channel-asym",
    "ct-mxfp4": "mxfp4-g32",
    "ct-mxfp8": "fp8-e4m3-g32",
    "ct-nvfp4": "nvfp4-g16",
    "fp4-deepseek-v4": "mxfp4-g32",
    "fp8-block-even": "fp8-e4m3-32x32",
    "fp8-block128-tall": "fp8-e4m3-128x128",
    "fp8-block128-wide": "fp8-e4m3-128x128",
    "fp8-block32-ragged": "fp8-e4m3-32x32",
    "gpt-oss-mxfp4": "mxfp4-g32",
    "gptq-v1-int2": "gptq-int2-g32",
    "gptq-v1-int3": "gptq-int3-g32",
    "gptq-v1-int4": "gptq-int4-g32",
    "gptq-v1-int8": "gptq-int8-g32",
    "gptq-v2-int2-act": "gptq-int2-g32-act",
    "gptq-v2-int3-act": "gptq-int3-g32-act",
    "gptq-v2-int4-act": "gptq-int4-g32-act",
    "gptq-v2-int8-act": "gptq-int8-g32-act",
    "hqq-int1-axis1": "hqq-int1-g8",
    "hqq-int2-axis1": "hqq-int2-g16",
    "hqq-int3-axis0": "hqq-int3-g16-axis0",
    "hqq-int3-axis1": "hqq-int3-g8",
    "hqq-int4-axis0": "hqq-int4-g40-axis0",
    "hqq-int4-axis1": "hqq-int4-g64",
    "hqq-int8-axis1": "hqq-int8-g16",
    "modelopt-nvfp4": "nvfp4-g16",
    "torchao-float8": "torchao-float8-channel",
    "torchao-int4-g16": "torchao-int4-g16",
    "torchao-int8": "torchao-int8-channel",
}


def refs_of(tensors: Tensors) -> dict[str, TensorRef]:
    """Claim tickets as a header gives them."""
    return {n: TensorRef(n, tuple(t.shape), CODES[t.dtype]) for n, t in tensors.items()}


def findings(
    tensors: Tensors, config: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> Findings:
    """Everything found, with the bytes of exactly the tensors that were asked for."""
    refs = refs_of(tensors)
    described = {
        ref.name: bytes(tensors[ref.name].contiguous().flatten().view(torch.uint8).tolist())
        for ref in descriptors(refs, config)
    }
    return find(refs, config, metadata or {}, described)


def read(encoded: Encoded, tensors: Tensors, expert: int | None = None) -> dict[str, torch.Tensor]:
    """The parts of one matrix."""
    return {
        role: tensors[ref.name] if index is None else tensors[ref.name][index]
        for role, ref, index in encoded.pieces(expert)
    }


def one(tensors: Tensors, config: Mapping[str, Any]) -> Encoded:
    """The only thing found, which can be decoded."""
    found = findings(tensors, config)
    assert not found.unplaced, found.unplaced
    (encoded,) = found.encoded
    return encoded


def refusal(tensors: Tensors, config: Mapping[str, Any]) -> Unplaced:
    """The only thing found, which cannot be decoded."""
    found = findings(tensors, config)
    assert not found.encoded
    (unplaced,) = found.unplaced
    return unplaced


def decoded(tensors: Tensors, config: Mapping[str, Any], expert: int | None = None) -> Decoded:
    """Decode the only thing found."""
    encoded = one(tensors, config)
    return decode(encoded, read(encoded, tensors, expert))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# against the libraries ---------------------------------------------------------------------------


def test_every_stored_file_is_tested() -> None:
    assert {path.stem for path in FOLDER.glob("*.safetensors")} == set(ENCODINGS)


@pytest.mark.parametrize("name", ENCODINGS)
def test_decodes_to_the_values_of_its_library(name: str) -> None:
    path = FOLDER / f"{name}.safetensors"
    everything = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    config = json.loads(metadata["case"])["config"]
    tensors = {n: t for n, t in everything.items() if not n.startswith("expected:")}
    found = findings(tensors, quantization_config({"quantization_config": config}), metadata)
    assert found.unplaced == ()
    (encoded,) = found.encoded
    assert encoded.encoding == ENCODINGS[name]
    assert {n for n in tensors if not n.endswith("bias")} == found.names
    expected = everything[f"expected:{encoded.name}"]
    assert encoded.shape == tuple(expected.shape)
    stacked = len(encoded.shape) == 3
    for expert in range(encoded.shape[0]) if stacked else (None,):
        truth = expected if expert is None else expected[expert]
        weights = decode(encoded, read(encoded, tensors, expert)).weights
        assert weights.dtype == torch.float32
        if name == "bnb-int8":  # the library multiplies by 1 / 127, rounded
            torch.testing.assert_close(weights, truth, rtol=2**-22, atol=0)
        else:  # in float32, or rounded once to the dtype in which the library computes
            assert torch.equal(weights.to(truth.dtype), truth)


# against loops ----------------------------------------------------------------------------------


def naive_blocks(codes: torch.Tensor, scale: torch.Tensor, height: int, width: int) -> torch.Tensor:
    wide = codes.double()
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            wide[i * height : (i + 1) * height, j * width : (j + 1) * width] *= scale[i, j].double()
    return wide.float()


def fp8(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed)).mul_(50).to(torch.float8_e4m3fn)


def test_the_shape_of_deepseek_kv_a_proj_decodes_with_ragged_blocks() -> None:
    codes, scale = fp8(576, 140), torch.rand(5, 2, generator=generator(1)) + 0.5
    name = "model.layers.0.self_attn.kv_a_proj_with_mqa.weight"
    tensors = {name: codes, f"{name}_scale_inv": scale}
    for config in ({}, {"quant_method": "fp8", "weight_block_size": [128, 128]}):
        weights = decoded(tensors, config).weights
        assert torch.equal(weights, naive_blocks(codes, scale, 128, 128))


def test_stacked_fp8_experts_have_scales_of_their_own() -> None:
    codes, scale = fp8(3, 40, 64), torch.rand(3, 2, 2, generator=generator(1)) + 0.5
    tensors = {"m.experts.gate_up_proj": codes, "m.experts.gate_up_proj_scale_inv": scale}
    config = {"quant_method": "fp8", "weight_block_size": [32, 32]}
    assert one(tensors, config).shape == (3, 40, 64)
    for e in range(3):
        truth = naive_blocks(codes[e], scale[e], 32, 32)
        assert torch.equal(decoded(tensors, config, e).weights, truth)


@pytest.mark.parametrize("shape", [(2, 1, 6), (2, 6, 1)])
def test_llama_4_stacks_of_fbgemm_have_one_scale_per_column(shape: tuple[int, ...]) -> None:
    codes, scale = fp8(2, 6, 6), torch.rand(2, 6, generator=generator(1)) + 0.5
    tensors = {"m.experts.down_proj": codes, "m.experts.down_proj_scale": scale.reshape(shape)}
    for e in range(2):
        weights = decoded(tensors, {"quant_method": "fbgemm_fp8"}, e).weights
        assert torch.equal(weights, naive_blocks(codes[e], scale[e][None, :], 6, 1))


@pytest.mark.parametrize("role", ["weight_scale", "weight_scale_inv", "scale_weight", "scale"])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_one_scale_for_a_tensor_has_many_names_and_shapes(role: str, shape: tuple[int]) -> None:
    tensors = {f"{X}.weight": fp8(5, 7), f"{X}.{role}": torch.full(shape, 0.25)}
    assert torch.equal(decoded(tensors, {}).weights, fp8(5, 7).float() / 4)


def test_scales_per_row_may_be_flat() -> None:
    scale = torch.tensor([1.0, 2.0, 4.0])
    tensors = {f"{X}.weight": fp8(3, 7), f"{X}.weight_scale": scale}
    truth = fp8(3, 7).float() * scale[:, None]
    assert torch.equal(decoded(tensors, {"quant_method": "fbgemm_fp8"}).weights, truth)


def test_four_bit_floats_under_their_own_dtype_count_two_to_a_byte() -> None:
    path = FOLDER / "modelopt-nvfp4.safetensors"
    tensors = {n: t for n, t in load_file(path).items() if not n.startswith("expected:")}
    refs = refs_of(tensors)
    packed = refs[f"{X}.weight"]
    rows, half = packed.shape
    refs[packed.name] = TensorRef(packed.name, (rows, 2 * half), "F4")
    (encoded,) = find(refs, {}, {}, {}).encoded
    assert encoded.shape == (rows, 2 * half)
    expected = load_file(path)[f"expected:{X}.weight"]
    assert torch.equal(decode(encoded, read(encoded, tensors)).weights, expected)


def pack_rows(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Rows of fields as 32-bit words, by the arithmetic of long integers."""
    rows = []
    for row in values.tolist():
        stream = sum(value << (bits * place) for place, value in enumerate(row))
        count = math.ceil(len(row) * bits / 32)
        words = [(stream >> (32 * k)) & 0xFFFFFFFF for k in range(count)]
        rows.append([word - (word >> 31 << 32) for word in words])
    return torch.tensor(rows, dtype=torch.int32)


@given(bits=st.integers(1, 8), rows=st.integers(1, 5), count=st.integers(1, 70), seed=st.integers())
def test_fields_survive_packing(bits: int, rows: int, count: int, seed: int) -> None:
    values = torch.randint(0, 2**bits, (rows, count), generator=generator(seed % 2**32))
    assert torch.equal(unpack(pack_rows(values, bits), bits, count).long(), values)


@given(
    bits=st.sampled_from([2, 3, 4, 8]),
    groups=st.integers(1, 3),
    width=st.integers(1, 5).map(lambda n: 32 * n),
    outputs=st.integers(1, 2).map(lambda n: 32 * n),
    version=st.sampled_from(["gptq", "gptq_v2"]),
    act=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_gptq_survives_packing(
    bits: int, groups: int, width: int, outputs: int, version: str, act: bool
) -> None:
    made, cols = generator(bits + groups), groups * width
    codes = torch.randint(0, 2**bits, (outputs, cols), generator=made)
    zero = torch.randint(1, 2**bits, (groups, outputs), generator=made)
    scale = torch.rand(groups, outputs, generator=made) + 0.1
    order = torch.arange(cols) // width
    order = order[torch.randperm(cols, generator=made)] if act else order
    tensors = {
        f"{X}.qweight": pack_rows(codes, bits).T.contiguous(),
        f"{X}.qzeros": pack_rows(zero - int(version == "gptq"), bits),
        f"{X}.scales": scale,
        f"{X}.g_idx": order.int(),
    }
    config = {"quant_method": "gptq", "checkpoint_format": version, "bits": bits}
    config |= {"group_size": width, "desc_act": act}
    truth = (codes - zero[order].T) * scale[order].T
    assert torch.equal(decoded(tensors, config).weights, truth)
    if not act:  # files of older writers have no order
        del tensors[f"{X}.g_idx"]
        assert torch.equal(decoded(tensors, config).weights, truth)


@given(groups=st.integers(1, 4), width=st.integers(1, 40), outputs=st.integers(1, 5))
@settings(deadline=None)
def test_awq_survives_packing(groups: int, width: int, outputs: int) -> None:
    made, rows, cols = generator(groups), 8 * outputs, groups * width
    codes = torch.randint(0, 16, (rows, cols), generator=made)
    zero = torch.randint(0, 16, (rows, groups), generator=made)
    scale = torch.rand(groups, rows, generator=made).half()
    order = [8 * word + k for word in range(outputs) for k in (0, 2, 4, 6, 1, 3, 5, 7)]
    tensors = {
        f"{X}.qweight": pack_rows(codes.T[:, order], 4),
        f"{X}.qzeros": pack_rows(zero.T[:, order], 4),
        f"{X}.scales": scale,
    }
    config = {"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": width}
    place = torch.arange(cols) // width
    truth = (codes - zero[:, place]) * scale.T.float()[:, place]
    assert torch.equal(decoded(tensors, config).weights, truth)


@given(
    bits=st.integers(1, 8),
    rows=st.integers(1, 40),
    groups=st.integers(2, 4),
    width=st.integers(8, 40),
    asymmetric=st.booleans(),
)
@settings(deadline=None)
def test_compressed_tensors_survive_packing(
    bits: int, rows: int, groups: int, width: int, asymmetric: bool
) -> None:
    made, half = generator(bits), 2 ** (bits - 1)
    codes = torch.randint(-half, half, (rows, groups * width), generator=made)
    zero = torch.randint(-half, half, (rows, groups), generator=made)
    scale = torch.rand(rows, groups, generator=made)
    tensors = {
        f"{X}.weight_packed": pack_rows(codes + half, bits),
        f"{X}.weight_scale": scale,
        f"{X}.weight_shape": torch.tensor(codes.shape),
    }
    if asymmetric:
        tensors[f"{X}.weight_zero_point"] = pack_rows(zero.T + half, bits).T.contiguous()
    weights = {"num_bits": bits, "type": "int", "group_size": width}
    config = {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": weights}}}
    place = torch.arange(groups * width) // width
    truth = (codes - (zero[:, place] if asymmetric else 0)) * scale[:, place]
    assert torch.equal(decoded(tensors, config).weights, truth)


@pytest.mark.parametrize("bits", [4, 8])
def test_zero_points_of_compressed_tensors_may_be_plain_bytes(bits: int) -> None:
    made, half = generator(bits), 2 ** (bits - 1)
    codes = torch.randint(-half, half, (6, 64), generator=made)
    zero = torch.randint(-half, half, (6, 1), generator=made)
    tensors = {
        f"{X}.weight_packed": pack_rows(codes + half, bits),
        f"{X}.weight_scale": torch.full((6, 1), 0.5),
        f"{X}.weight_shape": torch.tensor([6, 64]),
        f"{X}.weight_zero_point": zero.to(torch.int8),
    }
    assert torch.equal(decoded(tensors, {}).weights, (codes - zero) * 0.5)


def test_bytes_split_into_fields_from_the_low_end() -> None:
    packed = torch.tensor([[0b11100100, 0x4F]], dtype=torch.uint8)
    assert fields(packed, 4).tolist() == [[4, 14, 15, 4]]
    assert fields(packed[:, :1], 2).tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("length", "count", "hint", "block"),
    [
        (576, 5, 128, 128),
        (192, 2, 128, 128),
        (100, 1, 128, 128),
        (100, 1, None, 100),
        (100, 100, 128, 1),
        (4096, 128, 128, 32),
        (40, 2, None, None),  # 20 and 20, or 32 and 8
        (70, 7, None, 10),
        (576, 5, None, None),
        (10, 11, 1, None),
        (10, 0, 1, None),
    ],
)
def test_blocks_follow_from_counts_only_where_one_size_fits(
    length: int, count: int, hint: int | None, block: int | None
) -> None:
    assert block_length(length, count, hint) == block


# what is found ----------------------------------------------------------------------------------


def int4(rows: int, cols: int) -> dict[str, torch.Tensor]:
    """A 4-bit GPTQ module without its configuration."""
    return {
        f"{X}.qweight": torch.zeros(cols // 8, rows, dtype=torch.int32),
        f"{X}.qzeros": torch.zeros(cols // 32, rows // 8, dtype=torch.int32),
        f"{X}.scales": torch.ones(cols // 32, rows),
    }


def test_plain_tensors_are_left_alone() -> None:
    tensors = {
        "model.embed_tokens.weight": torch.zeros(10, 4, dtype=torch.bfloat16),
        "model.layers.0.mlp.gate.weight": torch.zeros(3, 4),
        "model.layers.0.input_layernorm.weight": torch.zeros(4),
        "model.layers.0.mlp.down_proj.bias": torch.zeros(3, 4),
        "bert.embeddings.position_ids": torch.arange(10)[None, :],
        "h.0.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.uint8),
    }
    for config in ({}, {"quant_method": "fp8"}, {"quant_method": "gptq"}, {"quant_method": "aqlm"}):
        assert findings(tensors, config) == ((), ())


def test_a_mixed_checkpoint_is_taken_apart() -> None:
    """ModelOpt: attention in fp8, the rest in NVFP4, scales of activations and caches beside."""
    nvfp4 = load_file(FOLDER / "modelopt-nvfp4.safetensors")
    tensors = {n: t for n, t in nvfp4.items() if not n.startswith("expected:")}
    attention = "model.layers.0.self_attn.k_proj"
    tensors |= {
        f"{attention}.weight": fp8(8, 16),
        f"{attention}.weight_scale": torch.tensor(0.1),
        f"{attention}.input_scale": torch.tensor(0.1),
        f"{attention}.k_scale": torch.tensor(0.1),
        "lm_head.weight": torch.zeros(12, 16, dtype=torch.bfloat16),
    }
    found = findings(tensors, {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"})
    assert {each.name: each.encoding for each in found.encoded} == {
        f"{X}.weight": "nvfp4-g16",
        f"{attention}.weight": "fp8-e4m3-tensor",
    }
    assert found.unplaced == ()
    assert set(tensors) - found.names == {"lm_head.weight"}


@pytest.mark.parametrize(
    ("config", "encoding"),
    [
        ({"quant_method": "GPTQ", "bits": 4, "group_size": 32}, "gptq-int4-g32"),
        ({"quant_method": "auto-round", "packing_format": "auto_round:auto_gptq", "bits": 4,
          "group_size": 32, "sym": True}, "gptq-int4-g32"),
    ],
)  # fmt: skip
def test_gptq_is_known_by_its_writers_names(config: Mapping[str, Any], encoding: str) -> None:
    encoded = one(int4(32, 64), config)
    assert encoded.encoding == encoding
    assert encoded.facts["version"] == 1
    assert encoded.bits == 4


def test_a_module_may_have_a_width_of_its_own() -> None:
    encoded = one(int4(32, 64), {"quant_method": "gptq", "bits": 8, "group_size": 32})
    assert (encoded.bits, encoded.shape) == (4, (32, 64))


@pytest.mark.parametrize("marker", ["tensor", "metadata"])
def test_swizzled_scales_are_refused(marker: str) -> None:
    tensors = dict(stored_case("modelopt-nvfp4")[0])
    metadata = {"_quantization_metadata": "{}"} if marker == "metadata" else {}
    if marker == "tensor":
        tensors[f"{X}.comfy_quant"] = torch.zeros(3, dtype=torch.uint8)
    found = findings(tensors, {}, metadata)
    assert not found.encoded
    assert "swizzled" in found.unplaced[0].reason


def test_auto_round_of_its_own_stores_zero_points_as_they_are() -> None:
    config = {"quant_method": "auto-round", "packing_format": "auto_round", "bits": 4}
    assert one(int4(32, 64), config).facts["version"] == 2


@pytest.mark.parametrize(
    ("tensors", "config", "scheme", "reason"),
    [
        ({f"{X}.weight": fp8(4, 8)}, {"quant_method": "fp8"}, "fp8", "weight_scale_inv"),
        ({f"{X}.weight": fp8(40, 72), f"{X}.weight_scale_inv": torch.ones(2, 3)}, {}, "fp8",
         "do not fit"),
        (int4(32, 64), {}, "gptq", "no configuration"),
        (int4(32, 64), {"quant_method": "gptq", "checkpoint_format": "marlin"}, "gptq", "marlin"),
        (int4(32, 64), {"quant_method": "gptq", "bits": 4, "desc_act": True}, "gptq", "g_idx"),
        ({k: v for k, v in int4(32, 64).items() if "scales" not in k}, {"quant_method": "gptq"},
         "gptq", "scales' are missing".replace("' are", "') are")),
        ({f"{X}.W_q": torch.zeros(4, 4, dtype=torch.uint8)}, {"quant_method": "hqq"}, "hqq",
         "missing"),
        ({"m.experts.down_proj_blocks": torch.zeros(2, 4, 2, 16, dtype=torch.uint8)},
         {"quant_method": "mxfp4"}, "mxfp4", "down_proj_scales"),
        ({f"{X}.weight": torch.zeros(16, 1, dtype=torch.uint8)}, {"quant_method": "bitsandbytes"},
         "bitsandbytes", "scales are missing"),
        ({f"{X}._weight_qdata": torch.zeros(4, 4, dtype=torch.int8)}, {"quant_method": "torchao"},
         "torchao", "metadata"),
        ({f"{X}.weight_packed": torch.zeros(4, 4, dtype=torch.int32)},
         {"quant_method": "compressed-tensors", "format": "marlin-24"}, "compressed-tensors",
         "marlin-24"),
        ({f"{X}.weight": fp8(4, 8), f"{X}.weight_scale": torch.ones(4, 1),
          f"{X}.pre_quant_scale": torch.ones(8)}, {"quant_method": "modelopt"}, "fp8", "inputs"),
    ],
)  # fmt: skip
def test_what_cannot_be_decoded_says_why(
    tensors: Tensors, config: Mapping[str, Any], scheme: str, reason: str
) -> None:
    unplaced = refusal(tensors, config)
    assert unplaced.scheme == scheme
    assert reason in unplaced.reason
    assert unplaced.refs[0].name in tensors


def test_an_unknown_method_is_named_and_its_modules_stay_whole() -> None:
    """AQLM: codebooks are floats of four dimensions, and no convolution kernels."""
    tensors = {
        f"{X}.codes": torch.zeros(8, 2, 2, dtype=torch.int8),
        f"{X}.codebooks": torch.zeros(2, 256, 1, 8, dtype=torch.float16),
        f"{X}.scales": torch.zeros(8, 1, 1, 1, dtype=torch.float16),
        f"{X}.bias": torch.zeros(8, dtype=torch.float16),
        "model.norm.weight": torch.zeros(8),
    }
    found = findings(tensors, {"quant_method": "aqlm"})
    (unplaced,) = found.unplaced
    assert (unplaced.name, unplaced.scheme) == (f"{X}.codes", "aqlm")
    assert "'aqlm' is not supported" in unplaced.reason
    assert set(tensors) - found.names == {f"{X}.bias", "model.norm.weight"}


def test_sparse_weights_are_not_taken_for_matrices() -> None:
    tensors = {
        f"{X}.compressed": torch.zeros(4, 4, dtype=torch.bfloat16),
        f"{X}.bitmask": torch.zeros(4, 1, dtype=torch.uint8),
    }
    unplaced = refusal(tensors, {"quant_method": "compressed-tensors", "format": "dense"})
    assert unplaced.scheme == "sparse-24"


def test_the_configuration_is_found_where_writers_put_it() -> None:
    inner = {"quant_method": "fp8"}
    assert quantization_config({"quantization_config": inner}) == inner
    assert quantization_config({"text_config": {"quantization_config": inner}}) == inner
    assert quantization_config({"compression_config": inner}) == inner
    assert quantization_config({"quantization_config": [1], "text_config": 3}) == {}


def test_only_small_tensors_are_asked_for() -> None:
    shape = f"{X}.weight_shape"
    tensors = {
        f"{X}.weight_packed": torch.zeros(4, 4, dtype=torch.int32),
        f"{X}.weight_scale": torch.ones(4, 2),
        shape: torch.zeros(1 << 14, dtype=torch.int64),
    }
    assert descriptors(refs_of(tensors), {}) == ()
    tensors[shape] = torch.tensor([4, 32])
    assert [ref.name for ref in descriptors(refs_of(tensors), {})] == [shape]
    weights = {"num_bits": 4, "type": "int", "group_size": 16}
    told = {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": weights}}}
    assert descriptors(refs_of(tensors), told) == ()  # the groups tell the width


def test_finding_needs_no_torch() -> None:
    code = (
        "import sys; from weightscope.encodings.schemes import find\n"
        "from weightscope.tensor import TensorRef as R\n"
        "kinds = {'a.weight': 'F8_E4M3', 'a.weight_scale': 'F32'}\n"
        "t = {name: R(name, (4, 8), kind) for name, kind in kinds.items()}\n"
        "assert find(t, {}, {}, {}).encoded; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=environment())


# noise ------------------------------------------------------------------------------------------


def step_of(value: float, values: Sequence[float]) -> float:
    """Larger distance of a grid value to a neighbour."""
    place = sorted(set(values)).index(value)
    around = sorted(set(values))[max(place - 1, 0) : place + 2]
    return max(b - a for a, b in pairwise(around))


@pytest.mark.parametrize("name", ["ct-nvfp4", "hqq-int4-axis0", "gptq-v2-int4-act", "bnb-nf4"])
def test_noise_is_one_step_of_the_grid_over_the_square_root_of_12(name: str) -> None:
    everything = load_file(FOLDER / f"{name}.safetensors")
    tensors = {n: t for n, t in everything.items() if not n.startswith("expected:")}
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
        config = json.loads(file.metadata()["case"])["config"]
    encoded = one(tensors, config)
    made = decode(encoded, read(encoded, tensors))
    rows, cols = encoded.shape
    truth = torch.zeros(rows, cols, dtype=torch.float64)
    e2m1 = [sign * v for sign in (1, -1) for v in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)]
    for i in range(rows):
        for j in range(cols):
            if name == "ct-nvfp4":
                scale = float(tensors[f"{X}.weight_scale"][i, j // 16].float())
                scale /= float(tensors[f"{X}.weight_global_scale"])
                byte = int(tensors[f"{X}.weight_packed"][i, j // 2]) >> (4 * (j % 2)) & 15
                value = (-1 if byte & 8 else 1) * e2m1[byte & 7]
                step = step_of(value, e2m1) * scale
            elif name == "bnb-nf4":
                table = tensors[f"{X}.weight.quant_map"].double().tolist()
                place = i * cols + j
                byte = int(tensors[f"{X}.weight"][place // 2, 0]) >> (0 if place % 2 else 4) & 15
                step = step_of(table[byte], table)
                step *= float(tensors[f"{X}.weight.absmax"][place // 64])
            elif name == "hqq-int4-axis0":  # as many columns of groups as there are scales
                scales = tensors[f"{X}.scale"]
                step = float(scales[0, (i * cols + j) % scales.numel()])
            else:
                step = float(tensors[f"{X}.scales"][tensors[f"{X}.g_idx"][j], i])
            truth[i, j] = step * step / 12
    torch.testing.assert_close(made.row_sums, truth.sum(1), rtol=1e-5, atol=0)
    torch.testing.assert_close(made.col_sums, truth.sum(0), rtol=1e-5, atol=0)
    floor = math.sqrt(truth.sum(1).max()) + math.sqrt(truth.sum(0).max())
    assert made.sv_floor == pytest.approx(floor, rel=1e-5)
    sigma = deviations(encoded, read(encoded, tensors))
    torch.testing.assert_close(sigma.double() ** 2, truth, rtol=1e-5, atol=0)
    part = truth[: rows // 3]
    floor = math.sqrt(part.sum(1).max()) + math.sqrt(part.sum(0).max())
    assert noise_floor(sigma[: rows // 3]) == pytest.approx(floor, rel=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_rounding_errors_stay_below_the_floor_and_near_it(seed: int) -> None:
    weight = torch.randn(160, 256, generator=generator(seed))
    scale = weight.reshape(160, 8, 32).abs().amax(2) / 7
    codes = (weight / scale.repeat_interleave(32, 1)).round().clamp(-8, 7).long()
    tensors = {
        f"{X}.weight_packed": pack_rows(codes + 8, 4),
        f"{X}.weight_scale": scale,
        f"{X}.weight_shape": torch.tensor([160, 256]),
    }
    made = decoded(tensors, {})
    error = torch.linalg.matrix_norm(made.weights - weight, 2)
    assert 0.8 * made.sv_floor < float(error) < made.sv_floor


@pytest.mark.parametrize("power", [-120, 120])
def test_noise_survives_extreme_scales(power: int) -> None:
    tensors = {f"{X}.weight": fp8(8, 16).float().div_(50).to(torch.float8_e4m3fn)}
    normal = decoded({**tensors, f"{X}.weight_scale": torch.tensor(1.0)}, {})
    extreme = decoded({**tensors, f"{X}.weight_scale": torch.tensor(2.0**power)}, {})
    assert extreme.sv_floor == normal.sv_floor * 2.0**power
    assert torch.equal(extreme.weights, normal.weights * 2.0**power)


# hostile input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("fp8-block32-ragged", "weight_scale_inv"),
        ("ct-int4-g16", "weight_scale"),
        ("gptq-v1-int4", "scales"),
        ("awq-int4", "scales"),
        ("bnb-nf4", "weight.absmax"),
        ("bnb-nf4-double", "weight.nested_absmax"),
        ("hqq-int4-axis1", "zero"),
        ("torchao-int8", "_weight_scale"),
        ("ct-nvfp4", "weight_global_scale"),
        ("bnb-int8", "SCB"),
    ],
)
def test_scales_that_are_no_numbers_are_named(name: str, role: str, value: float) -> None:
    everything = load_file(FOLDER / f"{name}.safetensors")
    tensors = {n: t for n, t in everything.items() if not n.startswith("expected:")}
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
        metadata = file.metadata()
    tensors[f"{X}.{role}"].flatten()[-1] = value
    found = findings(tensors, json.loads(metadata["case"])["config"], metadata)
    (encoded,) = found.encoded
    with pytest.raises(DecodingError, match=rf"{role}.* NaN or infinite"):
        decode(encoded, read(encoded, tensors))


def test_the_exponent_255_is_not_a_number() -> None:
    tensors = {
        "m.experts.w_blocks": torch.zeros(1, 2, 1, 16, dtype=torch.uint8),
        "m.experts.w_scales": torch.tensor([[[254], [255]]], dtype=torch.uint8),
    }
    with pytest.raises(DecodingError, match="w_scales"):
        decoded(tensors, {}, 0)


def test_a_whole_scale_of_zero_is_named() -> None:
    everything = load_file(FOLDER / "ct-nvfp4.safetensors")
    tensors = {n: t for n, t in everything.items() if not n.startswith("expected:")}
    tensors[f"{X}.weight_global_scale"].zero_()
    with pytest.raises(DecodingError, match="weight_global_scale"):
        decoded(tensors, {})


@pytest.mark.parametrize("beyond", [-1, 2, 2**31 - 1])
def test_a_group_without_scales_is_named(beyond: int) -> None:
    tensors = int4(32, 64) | {f"{X}.g_idx": (torch.arange(64) // 32).int()}
    tensors[f"{X}.g_idx"][5] = beyond
    with pytest.raises(DecodingError, match="g_idx"):
        decoded(tensors, {"quant_method": "gptq", "bits": 4})


def test_parts_of_the_wrong_shape_are_named() -> None:
    tensors = {f"{X}.weight": fp8(4, 8), f"{X}.weight_scale": torch.ones(4, 1)}
    encoded = one(tensors, {})
    parts = read(encoded, tensors)
    with pytest.raises(DecodingError, match="weight_scale' has shape"):
        decode(encoded, {**parts, "scale": torch.ones(3, 1)})
    with pytest.raises(DecodingError, match="weight_scale' was not read"):
        decode(encoded, {"weight": parts["weight"]})


@pytest.mark.parametrize(
    "told",
    [
        b"", b"[]", b"\xff", b"{", b'{"shape": [4, 8]}', b"[" * 10_000,
        b'{"shape": [4, 8], "blocksize": 0}', b'{"shape": [4, -8], "blocksize": 64}',
        b'{"shape": [4, true], "blocksize": 64}', b'{"shape": [2, 4, 4], "blocksize": 64}',
        b'{"shape": [65536, 65536], "blocksize": 64}', b'{"shape": [4, 8], "blocksize": 1}',
        b'{"shape": [4, 8], "blocksize": 64, "nested_offset": NaN}',
        b'{"shape": [4, 8], "blocksize": 64, "nested_blocksize": 256}',
    ],
)  # fmt: skip
def test_descriptions_that_make_no_sense_are_refused(told: bytes) -> None:
    tensors = {
        f"{X}.weight": torch.zeros(16, 1, dtype=torch.uint8),
        f"{X}.weight.absmax": torch.ones(1),
        f"{X}.weight.quant_map": torch.zeros(16),
        f"{X}.weight.quant_state.bitsandbytes__nf4": torch.frombuffer(
            bytearray(told or b" "), dtype=torch.uint8
        ),
    }
    assert refusal(tensors, {}).scheme == "bitsandbytes"


ROLES = (
    "weight", "weight_scale", "weight_scale_inv", "weight_packed", "weight_shape",
    "weight_zero_point", "weight_g_idx", "weight_global_scale", "weight_scale_2", "qweight",
    "qzeros", "scales", "g_idx", "SCB", "weight_format", "W_q", "scale", "zero", "shape", "axis",
    "packing", "group_size", "_weight_qdata", "_weight_scale", "_weight_zero_point",
    "weight_blocks", "weight_scales", "weight.absmax", "weight.quant_map", "weight.nested_absmax",
    "weight.nested_quant_map", "weight.quant_state.bitsandbytes__nf4", "compressed", "bitmask",
)  # fmt: skip
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1, 130),
    st.text(max_size=3),
    st.just([2, 2]),
    st.just({}),
)


@st.composite
def modules(draw: st.DrawFn) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, str]]:
    """A module of random parts, sizes and bytes, and a configuration that may or may not fit."""
    sides = st.sampled_from([0, 1, 2, 4, 8, 16, 32])
    tensors = {}
    for role in draw(st.lists(st.sampled_from(ROLES), min_size=1, max_size=8, unique=True)):
        dtype = draw(st.sampled_from(list(CODES)))
        tensors[f"{X}.{role}"] = random_tensor(draw(st.lists(sides, max_size=4)), dtype, len(role))
    methods = ["fp8", "gptq", "awq", "hqq", "torchao", "compressed-tensors", "aqlm", "mxfp4"]
    config = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "quant_method": st.one_of(st.sampled_from(methods), JUNK),
                "bits": JUNK,
                "group_size": JUNK,
                "weight_block_size": JUNK,
                "format": JUNK,
                "checkpoint_format": JUNK,
                "config_groups": st.one_of(
                    JUNK,
                    st.fixed_dictionaries(
                        {"g": st.fixed_dictionaries({"weights": st.just({"num_bits": 4})})}
                    ),
                ),
            },
        )
    )
    kinds = ["Int8Tensor", "Float8Tensor", "Int4Tensor", "IntxUnpackedToInt8Tensor"]
    told = {"_type": draw(st.sampled_from(kinds)), "_data": {"block_size": draw(JUNK)}}
    return tensors, config, {f"{X}.weight": json.dumps(told)}


@cache
def stored_case(name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, str]]:
    """Tensors, configuration and metadata of a stored file."""
    path = FOLDER / f"{name}.safetensors"
    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
    tensors = {n: t for n, t in load_file(path).items() if not n.startswith("expected:")}
    return tensors, json.loads(metadata["case"])["config"], metadata


def random_tensor(shape: Sequence[int], dtype: torch.dtype, seed: int) -> torch.Tensor:
    size = math.prod(shape) * dtype.itemsize
    raw = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator(seed))
    return (raw % 2 if dtype == torch.bool else raw).view(dtype).reshape(list(shape))


@st.composite
def damaged(draw: st.DrawFn) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, str]]:
    """A real module in which one or two things are not as they should be."""
    tensors, config, metadata = map(dict, stored_case(draw(st.sampled_from(sorted(ENCODINGS)))))
    for seed in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from(sorted(tensors)))
        shape, dtype = list(tensors[name].shape), tensors[name].dtype
        match draw(st.sampled_from(["drop", "side", "dtype", "bytes", "flat", "config"])):
            case "drop" if len(tensors) > 1:
                del tensors[name]
            case "side" if shape:
                side = draw(st.integers(0, len(shape) - 1))
                shape[side] = max(
                    0, draw(st.sampled_from([0, 1, shape[side] - 1, 2 * shape[side]]))
                )
                tensors[name] = random_tensor(shape, dtype, seed)
            case "dtype":
                tensors[name] = random_tensor(shape, draw(st.sampled_from(list(CODES))), seed)
            case "bytes":
                tensors[name] = random_tensor(shape, dtype, seed)
            case "flat":
                flat = draw(st.sampled_from([(), (math.prod(shape),), (1, *shape), (*shape, 1)]))
                tensors[name] = random_tensor(flat, dtype, seed)
            case "config":
                config[draw(st.sampled_from(sorted(config)))] = draw(JUNK)
    return tensors, config, metadata


@given(st.one_of(damaged(), damaged(), damaged(), modules()))
@settings(max_examples=800, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_combination_of_parts_crashes(
    made: tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, str]],
) -> None:
    tensors, config, metadata = made
    found = findings(tensors, config, metadata)
    assert found.names <= set(tensors)
    for unplaced in found.unplaced:
        assert unplaced.reason
        assert unplaced.scheme
    for encoded in found.encoded:
        stacked = len(encoded.shape) == 3
        try:
            weights = decode(encoded, read(encoded, tensors, 0 if stacked else None)).weights
        except DecodingError:
            continue
        assert tuple(weights.shape) == encoded.shape[-2:]
        assert encoded.bits <= DTYPES[encoded.parts[0][1].dtype].bits
