"""`holdfast doctor`: looks at a fleet as a gateway would find it, and says what is wrong and what to do about it."""
