"""How good a probe is, in numbers, words, panels and a page."""
