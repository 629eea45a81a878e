"""A digest of a KV page: one value, however the page is laid out and wherever it is kept.

A page is one block of one KV cache group: the parts of all its layers, in order. A part's words are 32 bits, little
endian, in logical order: K then V, token, head, dim, so that tensors with other strides digest alike. A part is cut
into tiles of 4096 words, the last one filled up with zeros; no tile spans two layers. This is ML64:

    d_t     = sum of key_i * word_i  mod 2^64      for each tile t; 4096 odd 64-bit keys, the same for all tiles
    digest  = BLAKE3(header, d_0 ... d_n)          its first 128 bits

The header says what the words are words of: the version of this scheme, the model's fingerprint, dtype and form, rank
and topology, pool, the hash of the chain of tokens, the absolute position, the true length. The sums are what costs,
and are the same from compiled code on the CPU (numba), from torch anywhere, and from one launch of a Triton kernel for
all pages of a step.

What is found:
    - any change within one word, and so any one wrong bit: certainly.
    - any two wrong bits: certainly. In two words of a tile they cancel only where two keys, or a key and the other's
      negative, are equal mod 2^33, and no two are (`keys.are_apart`).
    - more: other words, swapped rows or tiles, zeros where something was, are missed as often as a random multiple of
      at most 2^31 is zero mod 2^64: by 2^-63 most often, by 2^-32 where only top bits differ.
    - a whole page in the wrong place, of other tokens, of another model, cut short: by the header. Missed by 2^-128.

What is not: whoever chooses bytes to deceive. The keys are public and the sums are linear, so that other bytes with
the same sums are found with pencil and paper. Pages that leave the host are sealed by `seal_keyed`.

Usage, of vLLM's tensors: see `Pages`.
"""

from vllm_plugin.digest.header import Header, Rank
from vllm_plugin.digest.layout import LayoutRefused
from vllm_plugin.digest.pages import Pages
from vllm_plugin.digest.part import Part
from vllm_plugin.digest.seal import DIGEST_BYTES, seal, seal_keyed

__all__ = ["DIGEST_BYTES", "Header", "LayoutRefused", "Pages", "Part", "Rank", "seal", "seal_keyed"]
