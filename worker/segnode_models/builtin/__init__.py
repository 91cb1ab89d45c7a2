"""Models without weights: published thresholds and morphology, on torch."""
