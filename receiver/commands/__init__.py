"""The commands: each only calls what does the work, and shows the result to people or as JSON."""
