"""Parts of `discrimination.py`: labelled predictions, rows, scores, figures."""
