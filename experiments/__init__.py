"""Runs that take too long for a demo: each one command, each with a committed table."""

from dfdc_lib.config import TrainConfig

# A network of 0.1 million weights from scratch: the tables of the sample's version 2 are its own.
TINY = TrainConfig(
    encoder="tiny",
    steps=450,
    epoch_steps=90,
    batch=32,
    optimizer="adamw",
    learning_rate=3e-3,
    weight_decay=0.02,
    smoothing=0.05,
    paired=True,
    augmentation="demo",
    valid_every=1,
)
