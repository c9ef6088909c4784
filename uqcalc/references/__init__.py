"""Reference methods: by name, and the evaluation of one frame with them."""
