"""Work on real models and real machines: what the commands do, without how they print it."""
