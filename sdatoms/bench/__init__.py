"""What the figures in the docs are measured by, a module each; imports classifiers and below.

PEFT, psutil and playwright are imported where they are needed.
"""
