"""`holdfast gameday`: faults by script on a fleet of real vLLM servers, and a score of what became of the promises."""
