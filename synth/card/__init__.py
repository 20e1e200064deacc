"""The data card of a synthetic set: what is in it and what it cost, for the person who is to train on it."""
