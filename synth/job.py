"""The Ray seam of synth: fan the missing parts of a corpus or of a synthetic set out over the cluster."""

from __future__ import annotations
