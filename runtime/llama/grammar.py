"""JSON schemas as grammars (GBNF) for the sampler, by llama-cpp-python's converter."""


def gbnf_of_json_schema(schema: str) -> str:
    """The GBNF of the JSON texts that follow `schema`, itself JSON. Raises whatever the converter raises."""
    from llama_cpp.llama_grammar import json_schema_to_gbnf

    return json_schema_to_gbnf(schema)
