"""The stage: the sample, how its fakes are made, ways to see what they left."""
