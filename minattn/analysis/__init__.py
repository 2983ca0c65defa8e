"""Looking inside: attention maps, statistics, rollout and what they say about position."""
