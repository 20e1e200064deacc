"""Engines behind one protocol, what keeps them alive, and what makes them fast."""
