"""What makes the bundled assets: the base, the evaluator, the subjects, and their scenes."""
