"""The joint flow model: token streams, trunk, flow matching, tasks, noise and sampling settings."""
