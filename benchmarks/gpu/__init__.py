"""On a graphics card: is it right there, and how fast? One command measures all of it.

python -m benchmarks gpu-prepare      beforehand: what the card's machine needs, in one folder
python -m benchmarks gpu              there: part by part, each writes its table as it goes
python -m benchmarks gpu --rehearse   anywhere: every part in small, on the CPU, in a minute
"""
