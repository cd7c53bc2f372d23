"""A conformance kit: what an OpenAI-compatible server must do, rule by rule, over HTTP alone."""
