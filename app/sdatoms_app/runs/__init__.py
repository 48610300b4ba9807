"""The Runs tab; imports train and below."""
