"""What is typed: ``ggm demo | train | train-vq | sample | infill | evaluate | score``."""
