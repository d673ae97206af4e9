"""Train the autoencoder that draws the sample's deepfakes, and write its weights into the package
(ten minutes on one core).

    python -m experiments.train_autoencoder

It learns from posed and speaking pictures of the sample's cast, as notebook 04 does for a minute.
The weights are stored as float16 and shipped, so that making a sample needs no training.
"""

import numpy as np
import torch

from dfdc_lib.progress import text_progress
from dfdc_lib.rehearsal.autoencoder import (
    WEIGHTS,
    Autoencoder,
    face_weights,
    normalise,
    photograph,
    warp,
)

PICTURES, STEPS, BATCH, RATE = 1000, 3000, 12, 2e-3  # pictures and batch: per face


def main() -> None:
    """Train, and write the weights."""
    torch.manual_seed(0)
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    network, where = Autoencoder().to(memory_format=torch.channels_last), face_weights()
    album = {name: normalise(photograph(name, PICTURES, rng))[0] for name in network.decoders}
    optimizer = torch.optim.Adam(network.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, STEPS, pct_start=0.1)
    progress = text_progress("steps")
    for step in range(STEPS):
        loss = torch.zeros(())
        for name, faces in album.items():
            batch = faces[torch.randint(PICTURES, (BATCH,), generator=generator)]
            bent = warp(batch, generator).contiguous(memory_format=torch.channels_last)
            loss = loss + ((network(bent, name) - batch).abs() * where).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress(step + 1, STEPS)
    print(f"mean error of a face's pixel: {loss.item() / 2 / where.mean().item():.3f} spreads")
    weights = {key: value.half().numpy() for key, value in network.state_dict().items()}
    np.savez_compressed(WEIGHTS, **weights)
    print(f"wrote {WEIGHTS}: other weights draw other fakes, so raise sample.VERSION")


if __name__ == "__main__":
    main()
