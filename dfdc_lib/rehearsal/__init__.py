"""Film the sample, make its fakes, and show the traces that they leave."""
