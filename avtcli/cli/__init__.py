"""Words: parse, explain, print, exit code; torch is imported inside the commands only."""
