"""Runs that take too long for a demo: each one command, each with a committed table."""

from dataclasses import replace

from dfdc_lib.config import DEMO_TRAINING

# A network of 0.1 million weights from scratch: the tables of the sample's version 2 are its own.
TINY = replace(DEMO_TRAINING, encoder="tiny", size=0, steps=450, epoch_steps=90, learning_rate=3e-3)
