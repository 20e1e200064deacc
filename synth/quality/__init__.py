"""How good a text is: verdicts on answers, and measures of whole sets."""
