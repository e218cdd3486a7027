"""What the columns mean that only comparisons and trajectories have."""

from __future__ import annotations

from weightscope.columns import Column

_SPECTRUM = "weightscope; see explain of the metric without delta_"
COMPARED: tuple[Column, ...] = (
    Column("name_b", "text", "name in b, where it is another one"),
    Column("change", "text", "common, added, removed or resized"),
    Column(
        "reading",
        "text",
        "what happened to the weights: identical bf16-rounding low-rank-update full-rank-update "
        "scaled re-initialised transposed permuted resized renamed",
        reading="The first that applies, exact relations before measured ones.",
        caution="Needs the weights of both.",
    ),
    Column(
        "alpha_moved",
        "text",
        "whether alpha changed by more than its uncertainty: yes or no",
        formula="|alpha_b - alpha_a| > 2 sqrt(alpha_stderr_a^2 + alpha_stderr_b^2); bootstrap "
        "intervals apart, where both runs have them",
    ),
    Column("band_change", "text", "alpha_band in a -> in b, where it changed"),
    Column("class_change", "text", "welore_class in a -> in b, where it changed"),
    Column(
        "spectrum_w1",
        "number",
        "distance of the two spectra",
        formula="Wasserstein-1 distance of the log eigenvalues above both floors",
        range="[0, inf)",
        reading="0.1: eigenvalues move by a factor of e^0.1 on average.",
    ),
    Column("rel_change", "number", "relative size of the change", formula="|B - A|_F / |A|_F"),
    Column(
        "cosine",
        "number",
        "cosine of both matrices, as vectors of their entries",
        formula="<A, B>_F / (|A|_F |B|_F)",
        range="[-1, 1]",
    ),
    Column("delta_stable_rank", "number", "stable rank of B - A", source=_SPECTRUM),
    *(
        Column(
            f"delta_rank_{percent}",
            "integer",
            f"directions that hold {percent} % of the energy of B - A",
        )
        for percent in (90, 95, 99)
    ),
    Column(
        "delta_alpha", "number", "power-law exponent of the spectrum of B - A", source=_SPECTRUM
    ),
    Column("delta_top_share", "number", "share of the energy of B - A in its top direction"),
    *(
        Column(
            f"subspace_{side}",
            "number",
            f"mean squared cosine between the leading {side} directions of A and B",
            range="[0, 1]",
            reading="1: the same space; 0: nothing in common.",
        )
        for side in ("left", "right")
    ),
    Column(
        "intruders",
        "integer",
        "leading left directions of B whose cosine to the leading space of A is below 0.6",
        source="after Shuttleworth et al., arXiv 2410.21228",
    ),
    Column("present", "text", "letters of the runs that have the matrix"),
    Column("matrices", "integer", "matrices of the group"),
    Column("moved", "integer", "matrices of the group whose alpha moved"),
)
"""Columns of a comparison beside those of its runs."""
TRACKED: tuple[Column, ...] = (
    Column("step", "integer", "training step"),
    Column("metric", "text", "column of the result table"),
    Column("value", "number", "its value at that step"),
)
"""Columns of a trajectory in long form."""
