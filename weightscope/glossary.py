"""What the columns mean that only comparisons and trajectories have."""

from __future__ import annotations

from weightscope.columns import Column

_SPECTRUM = "weightscope; see explain of the metric without delta_"
COMPARED: tuple[Column, ...] = (
    Column("name_b", "text", "name in b, where it is another one"),
    Column(
        "change",
        "text",
        "common, added, removed or resized",
        reading="common: in a and in b, of the same shape\n"
        "added: in b alone\n"
        "removed: in a alone\n"
        "resized: in a and in b, of different shapes",
    ),
    Column(
        "reading",
        "text",
        "what happened to the weights: identical bf16-rounding low-rank-update full-rank-update "
        "scaled re-initialised transposed permuted resized renamed",
        formula="the first that applies, exact relations before measured ones",
        reading="identical: every entry is the same number\n"
        "bf16-rounding: one is the other rounded to bfloat16, entry by entry\n"
        "low-rank-update: B - A has at most a quarter of its directions above rounding\n"
        "full-rank-update: B - A has more than a quarter of its directions above rounding\n"
        "scaled: B is a multiple of A, up to rounding\n"
        "re-initialised: B has nothing to do with A; their cosine is that of independent matrices\n"
        "transposed: B is A transposed\n"
        "permuted: the same entries and singular values in another order\n"
        "resized: of different shapes; the entries common to both are compared\n"
        "renamed: the same shape and spectrum under another name",
        caution="Needs the weights of both.",
    ),
    Column(
        "alpha_moved",
        "text",
        "whether alpha changed by more than its uncertainty: yes or no",
        formula="|alpha_b - alpha_a| > 2 sqrt(alpha_stderr_a^2 + alpha_stderr_b^2); bootstrap "
        "intervals apart, where both runs have them",
        reading="yes: by more than its uncertainty\nno: by less, or not at all",
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
