"""Families of models: what a decoder, an encoder, an encoder-decoder and an image classifier do each in its own way.

One convention holds for all, so that the trainer, the Fisher information and every mitigation are written once: a
batch has ``labels``, (B, 1 + N), -100 where nothing is predicted and always so in column 0, and the model's
``logits``, (B, 1 + N, W), predict at ``[:, t]`` the label at ``[:, t + 1]``. A decoder's next token is the case that
gave the convention; a classifier predicts one label, its class, after its input.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from forgetting.registry import Registry

if TYPE_CHECKING:
    from forgetting.families.base import Family

FAMILIES: Registry[type[Family]] = Registry("family")
FAMILIES.add("decoder", "forgetting.families.decoder:Decoder")
FAMILIES.add("encoder", "forgetting.families.encoder:Encoder")
FAMILIES.add("encoder_decoder", "forgetting.families.encoder_decoder:EncoderDecoder")
FAMILIES.add("vision", "forgetting.families.vision:Vision")
