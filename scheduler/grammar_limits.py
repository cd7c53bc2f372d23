"""GrammarLimits: what a grammar may cost the engine."""

from dataclasses import dataclass

from llguidance import LLParserLimits


@dataclass(frozen=True, kw_only=True)
class GrammarLimits:
    """What a grammar may cost. The library's own limits count work; seconds are of processor time but for one."""

    wait_seconds: float = 0.05  # of a clock on the wall: a step's wait for its masks, and for its tokens
    start_seconds: float = 1.0  # to compile it and to compute its first mask
    mask_seconds: float = 0.25  # to compute any other mask
    max_items_in_row: int = 2_000  # alternatives at one position of a text, after a token
    max_items_in_mask: int = 50_000  # in all positions that one mask looks at
    max_lexer_states: int = 20_000  # 1 to 2 KB each, kept with the grammar; a usual schema has some hundreds
    lexer_fuel: int = 200_000  # of one mask
    max_symbols: int = 200_000  # of the grammar; 8 for each optional property of a schema

    def of_parser(self) -> LLParserLimits:
        """Return the limits in the library's form. Its errors would hold the grammar and the text: not verbose."""
        return LLParserLimits(
            max_items_in_row=self.max_items_in_row,
            step_max_items=self.max_items_in_mask,
            max_lexer_states=self.max_lexer_states,
            step_lexer_fuel=self.lexer_fuel,
            max_grammar_size=self.max_symbols,
            verbose_errors=False,
        )
