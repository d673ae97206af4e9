"""Speed against named peers: each measure is a ratio from one run in which they take turns."""
