"""Training frameworks and notebooks.

A live model is handed to ``analyze`` again and again while it learns:
``transformers.WeightscopeCallback`` for the Trainer, ``torch.Observer`` for a loop of one's own,
``lightning.LightningCallback`` for Lightning. Each imports its framework; nothing imports them.
``rates`` turns a plan of learning rates into parameter groups.
``notebook`` shows a run in Jupyter and its kin, which load it by name.
"""
