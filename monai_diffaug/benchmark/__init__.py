"""Speed against a loop around diffusers' pipeline and against the bare forwards, on the same weights."""
