"""The public model endpoints below /v1/, as OpenAI has them: for programs, which show a key."""
