"""The commands; imports everything below, and nothing imports it but `sdatoms.__main__`."""
