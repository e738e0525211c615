"""Token embeddings with the image's embeddings put in their places."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Embed(nn.Module):
    """input_ids [B, S], image_embeds [N, E] -> inputs_embeds [B, S, E].

    The n-th image token of the batch, counted row by row, takes row n of `image_embeds`. Those beyond the last row take
    the table's, as every other token does: a model may write an image token, whose step has no images (N is 0). That
    a prompt has as many image tokens as rows is the caller's to check.
    """

    def __init__(self, embed_tokens: nn.Module, image_token_id: int) -> None:
        super().__init__()
        self.embed_tokens = embed_tokens
        self.image_token_id = image_token_id

    def forward(self, input_ids_BS: Tensor, image_embeds_NE: Tensor) -> Tensor:
        is_image_BS = input_ids_BS == self.image_token_id
        ordinal_BS = is_image_BS.long().flatten().cumsum(0).view_as(input_ids_BS)
        is_replaced_BS = is_image_BS & (ordinal_BS <= image_embeds_NE.shape[0])
        # Row 0 stands for "no image", so that the lookup below is in range also when there are no images at all.
        rows_NE = torch.cat((image_embeds_NE.new_zeros(1, image_embeds_NE.shape[1]), image_embeds_NE))
        image_BSE = F.embedding(ordinal_BS * is_replaced_BS, rows_NE)
        return torch.where(is_replaced_BS[..., None], image_BSE, self.embed_tokens(input_ids_BS))
