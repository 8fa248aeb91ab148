"""What a probe is made of: jobs, features' heads of each kind, the protocol."""
