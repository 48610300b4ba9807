"""What the figures in README and docs are measured by, a module a figure; imports classifiers and
below, and PEFT for the peers."""
