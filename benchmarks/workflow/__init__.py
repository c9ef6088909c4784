"""Parts of `halting_workflow.py`: a small potential, its runs, verdicts, scores."""
