"""Make the quantised test files: real libraries pack small matrices and unpack them again.

    python make_quantised.py FOLDER [NAME ...]

Every file holds the tensors as the library stores them, the library's own dequantised values under
``expected:<name>`` in the dtype it computes in, and ``case`` in its metadata: the library and its
version, and the quantisation config that a checkpoint of it would have.

Environment of the stored files: Python 3.11, torch 2.13.0 (CPU), compressed-tensors 0.20.0,
transformers 5.23.0, bitsandbytes 0.50.2, torchao 0.18.0, hqq 0.2.8.post1, gptqmodel 7.7.0,
auto-gptq 0.7.1, autoawq 0.2.9, nvidia-modelopt 0.47.0, each of the last four installed without its
dependencies. ``ct-int4-actorder`` was removed from compressed-tensors later and is made by 0.11.0:
``PYTHONPATH=<folder with 0.11.0> python make_quantised.py FOLDER ct-int4-actorder``.
"""

from __future__ import annotations

import importlib
import json
import sys
import types
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file

NAME = "model.layers.0.mlp.down_proj"
Tensors = dict[str, torch.Tensor]


class Case(NamedTuple):
    """What one file holds."""

    library: str
    tensors: Tensors
    expected: Tensors
    config: dict[str, Any]
    metadata: Mapping[str, str] = types.MappingProxyType({})


CASES: dict[str, Callable[[], Case]] = {}


def case(name: str) -> Callable[[Callable[[], Case]], Callable[[], Case]]:
    """Register a case under its file name."""

    def register(make: Callable[[], Case]) -> Callable[[], Case]:
        CASES[name] = make
        return make

    return register


def matrix(rows: int, cols: int, seed: int = 0) -> torch.Tensor:
    """Gaussian entries with rows and columns of unequal size, so that no two groups are alike."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, cols, generator=generator)
    values *= torch.linspace(0.5, 2.0, rows)[:, None]
    return values * torch.logspace(-1, 1, cols)[None, :] * 0.02


def under(module: str, tensors: Tensors) -> Tensors:
    """Names of one module's tensors in a checkpoint."""
    return {f"{module}.{name}": value.contiguous() for name, value in tensors.items()}


def bare(package: str) -> None:
    """Register a package without running its __init__, which asks for more than it needs."""
    parts = package.split(".")
    for count in range(1, len(parts) + 1):
        name = ".".join(parts[:count])
        parent = name.rpartition(".")[0]
        roots = sys.modules[parent].__path__ if parent else sys.path
        where = next(
            Path(root) / parts[count - 1]
            for root in roots
            if (Path(root) / parts[count - 1]).is_dir()
        )
        module = types.ModuleType(name)
        module.__path__ = [str(where)]
        sys.modules[name] = module


# fp8 ---------------------------------------------------------------------------------------------


def _fp8_blocks(weight: torch.Tensor, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    rows, cols = weight.shape
    down, across = -(-rows // height), -(-cols // width)
    scale = torch.ones(down, across)
    codes = torch.empty(rows, cols, dtype=torch.float8_e4m3fn)
    for i in range(down):
        for j in range(across):
            block = slice(i * height, (i + 1) * height), slice(j * width, (j + 1) * width)
            scale[i, j] = weight[block].abs().max() / 448
            codes[block] = (weight[block] / scale[i, j]).to(torch.float8_e4m3fn)
    return codes, scale


def _deepseek(rows: int, cols: int, block: int) -> Case:
    from compressed_tensors.entrypoints.convert.converters.fp8block_dequantizer import (
        FP8BlockDequantizer,
    )

    codes, scale = _fp8_blocks(matrix(rows, cols), block, block)
    tensors = {f"{NAME}.weight": codes, f"{NAME}.weight_scale_inv": scale}
    decoder = FP8BlockDequantizer(weight_block_size=(block, block), dtype=torch.float32)
    expected = decoder.process(dict(tensors))
    config = {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [block, block],
    }
    return Case("compressed-tensors", tensors, expected, config)


@case("fp8-block128-tall")
def fp8_block128_tall() -> Case:
    return _deepseek(132, 12, 128)


@case("fp8-block128-wide")
def fp8_block128_wide() -> Case:
    return _deepseek(12, 200, 128)


@case("fp8-block32-ragged")
def fp8_block32_ragged() -> Case:
    return _deepseek(40, 72, 32)


@case("fp8-block-even")
def fp8_block_even() -> Case:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    codes, scale = _fp8_blocks(matrix(64, 32), 32, 32)
    tensors = {f"{NAME}.weight": codes, f"{NAME}.weight_scale_inv": scale}
    expected = Fp8Dequantize(None)._dequantize_one(codes, scale, torch.float32)
    config = {"quant_method": "fp8", "weight_block_size": [32, 32]}
    return Case("transformers", tensors, {f"{NAME}.weight": expected}, config)


@case("fp4-deepseek-v4")
def fp4_deepseek() -> Case:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    generator = torch.Generator().manual_seed(3)
    packed = torch.randint(-128, 128, (24, 48), dtype=torch.int8, generator=generator)
    exponents = torch.randint(110, 130, (24, 3), dtype=torch.uint8, generator=generator)
    scale = exponents.view(torch.float8_e8m0fnu)
    module = "model.layers.3.mlp.experts.7.down_proj"
    tensors = {f"{module}.weight": packed, f"{module}.weight_scale_inv": scale}
    expected = Fp8Dequantize(None)._dequantize_one(packed, scale, torch.float32)
    config = {
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
        "scale_fmt": "ue8m0",
        "expert_dtype": "fp4",
    }
    return Case("transformers", tensors, {f"{module}.weight": expected}, config)


# compressed-tensors ------------------------------------------------------------------------------


def _ct_config(form: str, **weights: Any) -> dict[str, Any]:
    group = {
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": None,
        "output_activations": None,
        "format": form,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
        "kv_cache_scheme": None,
        "quantization_status": "compressed",
    }


def _ct(
    form: str,
    weight: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None = None,
    extra: Tensors | None = None,
    **weights: Any,
) -> Case:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weights))
    state = {"weight": weight, "weight_scale": scale, **(extra or {})}
    if zero is not None:
        state["weight_zero_point"] = zero
    compressor = BaseCompressor.get_value_from_registry(form)
    stored = compressor.compress(state, scheme)
    expected = compressor.decompress(dict(stored), scheme)["weight"]
    args = scheme.weights.model_dump(mode="json")
    return Case(
        "compressed-tensors",
        under(NAME, stored),
        {f"{NAME}.weight": expected},
        _ct_config(form, **args),
    )


def _int_scales(
    weight: torch.Tensor, bits: int, width: int, symmetric: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Round-to-nearest scales of groups along the columns."""
    groups = weight.reshape(weight.shape[0], -1, width)
    if symmetric:
        return groups.abs().amax(2) / (2 ** (bits - 1) - 0.5), None
    low, high = groups.amin(2).clamp(max=0), groups.amax(2).clamp(min=0)
    scale = (high - low) / (2**bits - 1)
    return scale, (-low / scale - 2 ** (bits - 1)).round().to(torch.int8)


def _ct_packed(rows: int, cols: int, bits: int, width: int | None, symmetric: bool) -> Case:
    weight = matrix(rows, cols, bits)
    scale, zero = _int_scales(weight, bits, width or cols, symmetric)
    return _ct(
        "pack-quantized",
        weight,
        scale,
        zero,
        num_bits=bits,
        type="int",
        symmetric=symmetric,
        strategy="group" if width else "channel",
        group_size=width,
    )


@case("ct-int4-g16")
def ct_int4() -> Case:
    return _ct_packed(40, 96, 4, 16, symmetric=True)


@case("ct-int4-g32-asym")
def ct_int4_asym() -> Case:
    return _ct_packed(27, 96, 4, 32, symmetric=False)


@case("ct-int3-g20-asym")
def ct_int3() -> Case:
    return _ct_packed(21, 100, 3, 20, symmetric=False)


@case("ct-int4-channel-ragged")
def ct_int4_channel() -> Case:
    return _ct_packed(30, 51, 4, None, symmetric=True)


@case("ct-int8-channel-asym")
def ct_int8_channel() -> Case:
    return _ct_packed(30, 50, 8, None, symmetric=False)


@case("ct-int6-g10")
def ct_int6() -> Case:
    return _ct_packed(17, 70, 6, 10, symmetric=True)


@case("ct-int-quantized-channel")
def ct_int_quantized() -> Case:
    weight = matrix(36, 70)
    scale, zero = _int_scales(weight, 8, 70, symmetric=True)
    return _ct(
        "int-quantized",
        weight,
        scale,
        zero,
        num_bits=8,
        type="int",
        symmetric=True,
        strategy="channel",
    )


@case("ct-int-quantized-group-asym")
def ct_int_quantized_asym() -> Case:
    weight = matrix(36, 70)
    scale, zero = _int_scales(weight, 8, 35, symmetric=False)
    return _ct(
        "int-quantized",
        weight,
        scale,
        zero,
        num_bits=8,
        type="int",
        symmetric=False,
        strategy="group",
        group_size=35,
    )


@case("ct-fp8-tensor")
def ct_fp8_tensor() -> Case:
    weight = matrix(40, 52)
    return _ct(
        "float-quantized",
        weight,
        weight.abs().max().reshape(1) / 448,
        num_bits=8,
        type="float",
        symmetric=True,
        strategy="tensor",
    )


@case("ct-fp8-channel")
def ct_fp8_channel() -> Case:
    weight = matrix(40, 52)
    return _ct(
        "float-quantized",
        weight,
        weight.abs().amax(1, keepdim=True) / 448,
        num_bits=8,
        type="float",
        symmetric=True,
        strategy="channel",
    )


@case("ct-mxfp8")
def ct_mxfp8() -> Case:
    weight = matrix(20, 96)
    scale = weight.reshape(20, 3, 32).abs().amax(2).div(448).log2().ceil().exp2()
    return _ct(
        "mxfp8-quantized",
        weight,
        scale,
        num_bits=8,
        type="float",
        symmetric=True,
        strategy="group",
        group_size=32,
        scale_dtype=torch.uint8,
    )


def _ct_fp4(
    form: str, scale: torch.Tensor, weight: torch.Tensor, whole: torch.Tensor | None, **weights: Any
) -> Case:
    """As ``_ct``, but decoded in float32: the compressor rounds to bfloat16."""
    from compressed_tensors.compressors.mx_utils import decompress_mx_scale
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    extra = {} if whole is None else {"weight_global_scale": whole}
    made = _ct(
        form, weight, scale, None, extra, num_bits=4, type="float", symmetric=True, **weights
    )
    args = QuantizationArgs(num_bits=4, type="float", symmetric=True, **weights)
    codes = unpack_fp4_from_uint8(
        made.tensors[f"{NAME}.weight_packed"], *weight.shape, torch.float32
    )
    stored = made.tensors[f"{NAME}.weight_scale"]
    wide = decompress_mx_scale(stored) if stored.dtype == torch.uint8 else stored
    expected = dequantize(codes, wide.float(), args=args, global_scale=whole, dtype=torch.float32)
    return made._replace(expected={f"{NAME}.weight": expected})


@case("ct-nvfp4")
def ct_nvfp4() -> Case:
    weight = matrix(24, 96)
    whole = (448 * 6 / weight.abs().max()).reshape(1)
    scale = (weight.reshape(24, 6, 16).abs().amax(2) / 6 * whole).to(torch.float8_e4m3fn).float()
    return _ct_fp4(
        "nvfp4-pack-quantized", scale, weight, whole, strategy="tensor_group", group_size=16
    )


@case("ct-mxfp4")
def ct_mxfp4() -> Case:
    weight = matrix(24, 96)
    scale = weight.reshape(24, 3, 32).abs().amax(2).div(6).log2().ceil().exp2()
    return _ct_fp4("mxfp4-pack-quantized", scale, weight, None, strategy="group", group_size=32)


@case("ct-int4-actorder")
def ct_actorder() -> Case:
    """Groups in the order of activations: compressed-tensors 0.11.0."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    weight, args = (
        matrix(24, 96),
        QuantizationArgs(
            num_bits=4,
            type="int",
            symmetric=True,
            strategy="group",
            group_size=16,
            actorder="group",
        ),
    )
    order = torch.randperm(96, generator=torch.Generator().manual_seed(1)).to(torch.int32) // 16
    grouped = weight[:, torch.argsort(order, stable=True)]
    scale, _ = _int_scales(grouped, 4, 16, symmetric=True)
    compressor = BaseCompressor.load_from_registry("pack-quantized")
    stored = compressor.compress_weight(
        weight=weight, scale=scale, g_idx=order, quantization_args=args
    )
    stored |= {"weight_scale": scale, "weight_g_idx": order}
    expected = compressor.decompress_weight(stored, quantization_args=args)
    same = dequantize((expected / scale[:, order.long()]).round(), scale, args=args, g_idx=order)
    assert torch.equal(expected, same)
    return Case(
        "compressed-tensors",
        under(NAME, stored),
        {f"{NAME}.weight": expected},
        _ct_config("pack-quantized", **args.model_dump(mode="json")),
    )


# ModelOpt and gpt-oss ----------------------------------------------------------------------------


@case("modelopt-nvfp4")
def modelopt_nvfp4() -> Case:
    from modelopt.torch.quantization.qtensor import NVFP4QTensor

    weight = matrix(24, 80)
    quantised, scale, whole = NVFP4QTensor.quantize(weight.clone(), 16)
    expected = quantised.dequantize(
        torch.float32, scale=scale, double_scale=whole, block_sizes={-1: 16}
    )
    tensors = {
        "weight": quantised._quantized_data,
        "weight_scale": scale,
        "weight_scale_2": whole,
        "input_scale": torch.tensor(0.01),
    }
    config = {
        "quant_method": "modelopt",
        "quant_algo": "NVFP4",
        "ignore": ["lm_head"],
        "producer": {"name": "modelopt", "version": version("nvidia-modelopt")},
    }
    return Case("nvidia-modelopt", under(NAME, tensors), {f"{NAME}.weight": expected}, config)


@case("gpt-oss-mxfp4")
def gpt_oss() -> Case:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    generator = torch.Generator().manual_seed(5)
    blocks = torch.randint(0, 256, (3, 20, 2, 16), dtype=torch.uint8, generator=generator)
    scales = torch.randint(115, 128, (3, 20, 2), dtype=torch.uint8, generator=generator)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    tensors = {
        f"{name}_blocks": blocks,
        f"{name}_scales": scales,
        f"{name}_bias": torch.zeros(3, 20, dtype=torch.bfloat16),
    }
    expected = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    config = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}
    return Case("transformers", tensors, {name: expected}, config)


# GPTQ and AWQ ------------------------------------------------------------------------------------


def _linear(weight: torch.Tensor) -> torch.nn.Linear:
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight.data = weight.clone()
    return linear


def _gptq_scales(weight: torch.Tensor, bits: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and zero points of groups, (outputs, groups); the first outputs have zero 0."""
    groups = weight.reshape(weight.shape[0], -1, width)
    low, high = groups.amin(2).clamp(max=0), groups.amax(2).clamp(min=0)
    low[:5] = 0.0
    scale = ((high - low) / (2**bits - 1)).half().float()
    return scale, (-low / scale).round().clamp(0, 2**bits - 1)


def _gptqmodel(bits: int, desc_act: bool, form: str) -> Case:
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.quantization import QuantizeConfig
    from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

    weight, width = matrix(32, 96, bits), 32
    order = torch.arange(96) // width
    if desc_act:
        order = order[torch.randperm(96, generator=torch.Generator().manual_seed(bits))]
    grouped = weight[:, torch.argsort(order, stable=True)]
    scale, zero = _gptq_scales(grouped, bits, width)
    layer = TorchLinear(
        bits=bits,
        group_size=width,
        sym=False,
        desc_act=desc_act,
        in_features=96,
        out_features=32,
        bias=False,
        pack_dtype=torch.int32,
    )
    layer.pack_original(_linear(weight), scale, zero, order.to(torch.int32))
    layer.post_init()
    expected = layer.dequantize_weight().T.contiguous()
    if form == "gptq":
        config = QuantizeConfig(bits=bits, group_size=width, sym=False, desc_act=desc_act)
        convert_gptq_v2_to_v1_format_module(layer, config)
    tensors = {
        role: getattr(layer, role).clone() for role in ("qweight", "qzeros", "scales", "g_idx")
    }
    told = {
        "bits": bits,
        "group_size": width,
        "desc_act": desc_act,
        "sym": False,
        "lm_head": False,
        "quant_method": "gptq",
        "checkpoint_format": form,
        "pack_dtype": "int32",
        "meta": {"quantizer": [f"gptqmodel:{version('gptqmodel')}"]},
    }
    return Case("gptqmodel", under(NAME, tensors), {f"{NAME}.weight": expected}, told)


for _bits in (2, 3, 4, 8):
    case(f"gptq-v1-int{_bits}")(lambda bits=_bits: _gptqmodel(bits, False, "gptq"))
    case(f"gptq-v2-int{_bits}-act")(lambda bits=_bits: _gptqmodel(bits, True, "gptq_v2"))


def _auto_gptq(bits: int) -> Case:
    bare("auto_gptq.nn_modules.qlinear")
    old = importlib.import_module("auto_gptq.nn_modules.qlinear.qlinear_cuda_old")
    weight, width = matrix(32, 64, bits), 32
    scale, zero = _gptq_scales(weight, bits, width)
    zero = zero.clamp(min=1)  # zero points of 0 are broken in this library
    layer = old.QuantLinear(bits, width, 64, 32, bias=False, weight_dtype=torch.float32)
    layer.pack(_linear(weight), scale, zero, None)
    expected = layer(torch.eye(64)).T.contiguous()
    tensors = {role: getattr(layer, role) for role in ("qweight", "qzeros", "scales", "g_idx")}
    config = {
        "bits": bits,
        "group_size": width,
        "damp_percent": 0.1,
        "desc_act": False,
        "sym": False,
        "true_sequential": True,
        "model_name_or_path": None,
        "model_file_base_name": "model",
        "quant_method": "gptq",
    }
    return Case("auto-gptq", under(NAME, tensors), {f"{NAME}.weight": expected}, config)


for _bits in (3, 4):
    case(f"auto-gptq-int{_bits}")(lambda bits=_bits: _auto_gptq(bits))


@case("awq-int4")
def awq() -> Case:
    from awq.modules.linear.gemm import WQLinear_GEMM
    from awq.utils.packing_utils import dequantize_gemm

    weight, width = matrix(64, 96), 32
    scale, zero = _gptq_scales(weight, 4, width)
    layer = WQLinear_GEMM.from_linear(
        _linear(weight), 4, width, False, scale.T.contiguous(), zero.T.contiguous()
    )
    expected = dequantize_gemm(layer.qweight, layer.qzeros, layer.scales, 4, width)
    tensors = {role: getattr(layer, role) for role in ("qweight", "qzeros", "scales")}
    config = {
        "quant_method": "awq",
        "zero_point": True,
        "group_size": width,
        "bits": 4,
        "version": "gemm",
        "modules_to_not_convert": None,
    }
    return Case("autoawq", under(NAME, tensors), {f"{NAME}.weight": expected.T}, config)


# bitsandbytes, torchao, hqq ----------------------------------------------------------------------


def _bnb_4bit(kind: str, double: bool, weight: torch.Tensor, storage: torch.dtype) -> Case:
    import bitsandbytes as bnb

    rows, cols = weight.shape
    linear = bnb.nn.Linear4bit(
        cols,
        rows,
        bias=False,
        compute_dtype=torch.float32,
        compress_statistics=double,
        quant_type=kind,
        quant_storage=storage,
    )
    linear.weight = bnb.nn.Params4bit(
        weight,
        requires_grad=False,
        quant_type=kind,
        compress_statistics=double,
        quant_storage=storage,
        module=linear,
    )
    linear = linear.to("cpu")
    assert linear.weight.quant_state is not None
    expected = bnb.functional.dequantize_4bit(linear.weight.data, linear.weight.quant_state)
    config = {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": kind,
        "bnb_4bit_use_double_quant": double,
        "bnb_4bit_compute_dtype": "float32",
        "bnb_4bit_quant_storage": str(storage).removeprefix("torch."),
    }
    return Case(
        "bitsandbytes", under(NAME, dict(linear.state_dict())), {f"{NAME}.weight": expected}, config
    )


@case("bnb-nf4")
def bnb_nf4() -> Case:
    return _bnb_4bit("nf4", False, matrix(40, 64), torch.uint8)


@case("bnb-nf4-double")
def bnb_nf4_double() -> Case:
    # more than 256 scales, so that these have two scales themselves
    return _bnb_4bit("nf4", True, matrix(180, 93).half(), torch.uint8)


@case("bnb-fp4-double-bf16")
def bnb_fp4() -> Case:
    return _bnb_4bit("fp4", True, matrix(28, 50), torch.bfloat16)


@case("bnb-int8")
def bnb_int8() -> Case:
    import bitsandbytes as bnb

    linear = bnb.nn.Linear8bitLt(50, 36, bias=False, has_fp16_weights=False)
    linear.weight = bnb.nn.Int8Params(
        matrix(36, 50).half(), requires_grad=False, has_fp16_weights=False
    )
    linear = linear.to("cpu")
    if linear.weight.SCB is None:  # the CPU path quantises on first use
        codes, scale, _ = bnb.functional.int8_vectorwise_quant(linear.weight.data)
        linear.weight.data, linear.weight.SCB = codes, scale
    stored = dict(linear.state_dict())
    expected = bnb.functional.int8_vectorwise_dequant(stored["weight"], stored["SCB"])
    config = {
        "quant_method": "bitsandbytes",
        "load_in_8bit": True,
        "load_in_4bit": False,
        "llm_int8_threshold": 6.0,
    }
    return Case("bitsandbytes", under(NAME, stored), {f"{NAME}.weight": expected}, config)


def _torchao(config: Any, told: dict[str, Any]) -> Case:
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
    from torchao.quantization import quantize_

    model = torch.nn.Module()
    model.down_proj = _linear(matrix(40, 64))
    quantize_(model, config)
    weight = model.down_proj.weight
    tensors, metadata = flatten_tensor_state_dict({f"{NAME}.weight": weight.detach()})
    expected = {f"{NAME}.weight": weight.dequantize().detach()}
    quantization = {"quant_method": "torchao", "quant_type": {"default": told}}
    return Case("torchao", tensors, expected, quantization, metadata)


@case("torchao-int8")
def torchao_int8() -> Case:
    from torchao.quantization import Int8WeightOnlyConfig

    return _torchao(Int8WeightOnlyConfig(), {"_type": "Int8WeightOnlyConfig"})


@case("torchao-float8")
def torchao_float8() -> Case:
    from torchao.quantization import Float8WeightOnlyConfig

    return _torchao(Float8WeightOnlyConfig(), {"_type": "Float8WeightOnlyConfig"})


@case("torchao-int4-g16")
def torchao_intx() -> Case:
    from torchao.quantization import IntxWeightOnlyConfig, PerGroup
    from torchao.quantization.quant_primitives import MappingType

    config = IntxWeightOnlyConfig(
        weight_dtype=torch.int4, granularity=PerGroup(16), mapping_type=MappingType.ASYMMETRIC
    )
    return _torchao(config, {"_type": "IntxWeightOnlyConfig"})


def _hqq(bits: int, axis: int, width: int, rows: int, cols: int) -> Case:
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    settings = BaseQuantizeConfig(nbits=bits, group_size=width, axis=axis)
    layer = HQQLinear(
        _linear(matrix(rows, cols, bits)),
        settings,
        compute_dtype=torch.float32,
        device="cpu",
        del_orig=False,
    )
    expected = layer.dequantize().detach()
    tensors = {
        name: value.detach()
        for name, value in layer.state_dict().items()
        if isinstance(value, torch.Tensor)
    }
    config = {
        "quant_method": "hqq",
        "skip_modules": ["lm_head"],
        "quant_config": {"weight_quant_params": settings["weight_quant_params"]},
    }
    return Case("hqq", under(NAME, tensors), {f"{NAME}.weight": expected}, config)


for _bits, _axis, _width, _shape in (
    (8, 1, 16, (36, 48)),
    (4, 1, 64, (48, 40)),
    (4, 0, 40, (48, 50)),
    (3, 1, 8, (37, 40)),
    (3, 0, 16, (36, 40)),
    (2, 1, 16, (48, 40)),
    (1, 1, 8, (48, 40)),
):
    case(f"hqq-int{_bits}-axis{_axis}")(
        lambda b=_bits, a=_axis, w=_width, s=_shape: _hqq(b, a, w, *s)
    )


def main() -> None:
    """Write the cases that were asked for, or all that the environment can make."""
    folder = Path(sys.argv[1])
    for name in sys.argv[2:] or [name for name in CASES if name != "ct-int4-actorder"]:
        made = CASES[name]()
        tensors = dict(made.tensors)
        tensors |= {f"expected:{key}": value.contiguous() for key, value in made.expected.items()}
        told = {"library": f"{made.library} {version(made.library)}", "config": made.config}
        metadata = {**made.metadata, "case": json.dumps(told, default=str)}
        save_file(tensors, folder / f"{name}.safetensors", metadata)
        print(name, {key: tuple(value.shape) for key, value in made.expected.items()})


if __name__ == "__main__":
    main()
