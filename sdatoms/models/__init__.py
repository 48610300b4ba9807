"""What is known of models; imports the ground (`errors`, `storage`, `settings`, …) alone."""
