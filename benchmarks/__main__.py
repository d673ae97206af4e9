"""Compare with named peers; write the tables and draw the figure that the site shows.

    python -m benchmarks all                   all but those below (20 minutes on two cores)
    python -m benchmarks detect preprocess …   some: detect, preprocess, predict, growth, …
    python -m benchmarks scale                 the bookkeeping for all 119,154 videos, simulated
                                               (15 minutes, 3 GB of disk, 7 million names in it)
    python -m benchmarks gpu                   all that a graphics card can tell, in five minutes;
                                               see docs/gpu.md
    python -m benchmarks.train_step            a training step against a plain loop (6 minutes)
    python -m benchmarks.encoders              what training each encoder costs (10 minutes)

Each ratio comes from one run in which the rivals take turns. Run it on a machine with nothing else
to do.
"""

import sys

# Each import stands where it is needed: processes that a benchmark starts import this file too.


def main(names: list[str]) -> int:
    """Run the benchmarks that are named."""
    if names[:1] == ["gpu"]:
        from benchmarks.gpu import plan

        return plan.main(names[1:])
    if names[:1] == ["gpu-prepare"]:
        from benchmarks.gpu import prepare

        return prepare.main(names[1:])
    if names == ["scale"]:
        from benchmarks import scale

        return scale.run()
    from benchmarks import peers

    if not names or not set(names) <= {"all", *peers.EVERYTHING}:
        print(__doc__, file=sys.stderr)
        return 2
    peers.run(peers.EVERYTHING if names == ["all"] else names)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
