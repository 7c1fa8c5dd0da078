"""What several test files share and no author of sinks needs."""
