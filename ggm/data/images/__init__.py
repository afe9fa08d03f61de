"""Images as tokens, and tokens as pictures."""
