"""TokenHistory: which tokens the texts of the batch hold, on the device, for penalties."""

from collections import Counter
from collections.abc import Sequence

import torch


class TokenHistory:
    """Counts of tokens, one slot for a text: twice the count in its output, plus 1 if its prompt has the token."""

    def __init__(self, num_slots: int, vocab_size: int, device: torch.device) -> None:
        self.counts = torch.zeros(num_slots, vocab_size, dtype=torch.int32, device=device)

    def fill(self, slot: int, prompt_token_ids: Sequence[int], output_token_ids: Sequence[int]) -> None:
        """Start the counts of a slot anew, with the tokens that a text has by now."""
        seen = Counter({token_id: 2 * count for token_id, count in Counter(output_token_ids).items()})
        seen.update(dict.fromkeys(prompt_token_ids, 1))
        token_ids = torch.tensor(list(seen), dtype=torch.int64).to(self.counts.device)
        self.counts[slot].zero_()
        self.counts[slot, token_ids] = torch.tensor(list(seen.values()), dtype=torch.int32).to(self.counts.device)
