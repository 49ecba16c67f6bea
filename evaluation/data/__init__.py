"""Pinned text; README.md says where each file is from."""
