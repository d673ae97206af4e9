"""Get the same answers sooner: MTCNN in batches, compiled scorers. The core runs without them."""
