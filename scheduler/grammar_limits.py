"""GrammarLimits: the resources that a grammar may use in the engine."""

from dataclasses import dataclass

from llguidance import LLParserLimits


@dataclass(frozen=True, kw_only=True)
class GrammarLimits:
    """The limits of one grammar. The library's own limits count work; seconds are processor time unless noted."""

    wait_seconds: float = 0.05  # wall-clock time: a step's wait for masks, and for matchers
    start_seconds: float = 1.0  # to compile it and to compute its first mask
    mask_seconds: float = 0.25  # to compute any other mask
    max_items_in_row: int = 2_000  # alternatives at one position of a text, after a token
    max_items_in_mask: int = 50_000  # in all positions that one mask visits
    max_lexer_states: int = 20_000  # 1 to 2 KB each, kept with the grammar; a usual schema has a few hundred
    lexer_fuel: int = 200_000  # of one mask
    max_symbols: int = 200_000  # of the grammar; 8 for each optional property of a schema

    def of_parser(self) -> LLParserLimits:
        """Return the library's limits. verbose_errors is off: they would quote the grammar and the text."""
        return LLParserLimits(
            max_items_in_row=self.max_items_in_row,
            step_max_items=self.max_items_in_mask,
            max_lexer_states=self.max_lexer_states,
            step_lexer_fuel=self.lexer_fuel,
            max_grammar_size=self.max_symbols,
            verbose_errors=False,
        )
