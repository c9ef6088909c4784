"""Parts of `halts_when_it_should.py`: runs, signals, outcomes, strips."""
