"""How a quantised weight is stored."""

from __future__ import annotations

from weightscope.columns import Column
from weightscope.measurement import Measurement
from weightscope.outcome import Values
from weightscope.settings import Settings

NEEDS: tuple[str, ...] = ()
COLUMNS = (
    Column(
        "encoding",
        "text",
        "scheme, width and group of a quantised weight, empty for any other",
        formula="from the names, shapes and dtypes of its stored tensors and from "
        "quantization_config",
        range="scheme-type[-group][-details], such as gptq-int4-g128, fp8-e4m3-128x128, "
        "bitsandbytes-nf4-b64, gguf-q4-k",
        reading="All figures of the row are those of the decoded weight. Its sv_floor is what "
        "rounding to the codes can add to a singular value; scales are taken as exact. "
        "Of GGUF's types it is estimated from the range of every block.",
        caution="At four bits and below tail metrics partly measure the quantiser: int4 moves the "
        "median singular value by several per cent. Compare models of one encoding only.",
        noise="as for any other matrix",
        source="the library that wrote the file decodes to the same values",
    ),
)


def evaluate(measured: Measurement, settings: Settings, known: Values) -> Values:  # noqa: ARG001
    """As recorded with the matrix."""
    encoded = measured.matrix.encoded
    return {"encoding": encoded.encoding} if encoded is not None else {}
