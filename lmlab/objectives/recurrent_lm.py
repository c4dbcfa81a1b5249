"""Language models from before attention, and one from after it: fixed window, plain recurrence, LSTM, minGRU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lmlab.backbones.recurrent import Recurrent, RecurrentConfig
from lmlab.data.batch import Batch
from lmlab.decoding import DecodingConfig, decode
from lmlab.heads import LMHead
from lmlab.nn.evaluation import evaluating
from lmlab.objectives.clm import CLM, tells_bytes
from lmlab.optim import OptimizerConfig, ScheduleConfig
from lmlab.tokenizer import Tokenizer


class RecurrentLM(CLM):
    """Causal language modelling without attention, over the same blocks as `CLM`; the state starts anew with each document.

    Args:
        tokenizer: Gives vocabulary and special ids.
        backbone: Cell and sizes.
        optimizer: How parameters move.
        schedule: Learning rate over the budget.
        length: Tokens in a block, at least 2; states do not reach beyond it.

    Source: see `RecurrentConfig`.
    """

    backbone: Recurrent

    def __init__(
        self,
        tokenizer: Tokenizer,
        backbone: RecurrentConfig = RecurrentConfig(),
        optimizer: OptimizerConfig = OptimizerConfig(),
        schedule: ScheduleConfig = ScheduleConfig(),
        length: int = 128,
    ) -> None:
        """Stores the configs."""
        super().__init__(tokenizer, backbone.head_config(), optimizer, schedule, length)
        self.recurrent_config = backbone

    def build(self, backbone: nn.Module | None = None) -> None:
        """Builds the backbone and a language-modelling head, tied if the backbone says so."""
        size = self.tokenizer.vocab_size
        own = Recurrent(self.recurrent_config, size, self.tokenizer.pad_id) if backbone is None else Recurrent.expect(backbone)
        self.backbone = own  # pyright: ignore[reportIncompatibleVariableOverride]  what reads differs, what is made of the states does not
        self.head = LMHead(self.backbone_config, vocab_size=size, embedding=own.embedding)
        self.register_buffer("token_bytes", torch.from_numpy(self.tokenizer.token_bytes()), persistent=False)
        self._counts_bytes = tells_bytes(self.tokenizer)

    def states(self, batch: Batch) -> Tensor:
        """(B, T, D) states of each position, which know nothing of later ones or other documents."""
        return self.backbone(batch["input_ids"], document_ids=batch.get("document_ids"))

    def continue_ids(self, rows: Sequence[Sequence[int]], config: DecodingConfig) -> list[list[int]]:
        """Continues rows of tokens; each new token reads its row again from the beginning.

        Args:
            rows: Tokens of each prompt, BOS included.
            config: How tokens are chosen.
        """
        read = [list(row[:-1]) for row in rows]

        def logits_of(tokens: Tensor) -> Tensor:
            for row, token in zip(read, tokens[:, 0].tolist(), strict=True):
                row.append(token)
            width = max(map(len, read))
            # padding on the right, which no state before it sees
            ids = torch.tensor([row + [self.tokenizer.pad_id] * (width - len(row)) for row in read], device=self.device)
            last = torch.tensor([len(row) - 1 for row in read], device=self.device)
            return self.head(self.backbone(ids)[torch.arange(len(read), device=self.device), last])

        first = torch.tensor([[row[-1]] for row in rows], device=self.device)
        stop = {self.tokenizer.eos_id, self.tokenizer.bos_id}
        with evaluating(self):
            return decode(logits_of, first, rows, config, stop, self.tokenizer.special_ids - stop)
