"""The maths, on tensors only: filters, encoders, codes, deltas; imports models and below."""
