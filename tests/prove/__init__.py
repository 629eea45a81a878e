"""The measured proofs behind the promises that take too long for `make test`."""
