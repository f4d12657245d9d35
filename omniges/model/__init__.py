"""The joint flow model: streams of tokens, trunk, flow, tasks, noise, sampling."""
