"""A run to something that another tool consumes, one target per file.

A target module has ``MEANING`` (a line for people), ``SOURCE``, ``Options`` (a frozen dataclass
whose fields are the options of the command line and whose defaults are the paper's), and
``propose(run, options)``, which returns a ``Proposal``. It is a function of the saved run alone: no
weight is read, and torch is not needed.
"""

TARGETS = ("peft", "axolotl", "trl", "welore", "sparsity", "lr", "bits")
"""What ``weightscope plan --for`` takes; each is a module of this drawer."""
