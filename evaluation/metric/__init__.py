"""The measures, one family a file; each says with a signature how it was computed."""
