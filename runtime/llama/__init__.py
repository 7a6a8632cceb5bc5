"""The binding of llama.cpp: engine, vocabulary, sampler, vision tower, devices."""
