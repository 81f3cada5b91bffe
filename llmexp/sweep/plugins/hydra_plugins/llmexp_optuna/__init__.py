"""The part of llmexp that Hydra finds by its name; llmexp/sweep/plugin.py shows it the way."""
