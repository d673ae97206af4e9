"""Speed, measured against named peers: each measure is a ratio from one run, its repetitions alternating."""
