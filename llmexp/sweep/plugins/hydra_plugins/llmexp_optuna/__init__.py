"""The part of llmexp that Hydra looks for by name; see llmexp/sweep/plugin.py for how it is found."""
