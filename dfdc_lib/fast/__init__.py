"""The same answers sooner: MTCNN in batches, compiled scorers. The core chooses them, and runs
without."""
