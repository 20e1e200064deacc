"""Scaling laws: forms, objectives, fits, intervals. numpy and scipy only."""
