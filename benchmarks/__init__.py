"""Speed against named peers: each measure is a ratio from one run, its rivals taking turns."""
