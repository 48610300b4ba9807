"""The commands; imports bench and below, and nothing imports it but `sdatoms.__main__`."""
