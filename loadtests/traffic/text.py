"""Text of so many words, the same for the same name: prompts that nobody wrote, and prefixes that really match."""

import random
from functools import lru_cache

# Short and common: with a space before it each is one token, in the vocabularies of the models that are about.
_SAID = """
    the of and to in is that for it with as was on be at by this have from or one had not but what all were when we
    there can an your which their said if do will each about how up out them then she many some so these would other
    into has more her two like him see time could no make than first been its who now people my made over did down
    only way find use may water long little very after words called just where most know get through back much
    before go good new write our used me man too any day same right look think also around another came come work
    three word must because does part even place well such here take why things help put years different away again
    off went old number great tell men say small every found still between name should home big give air line set
    own under read last never us left end along while might next sound below saw something thought both few those
    always looked show large often together asked house world going want school important until form food keep
    children feet land side without boy once animals life enough took four head above kind began almost live page
    got earth need far hand high year mother light parts country father let night following picture being study
    second eyes soon times story boys since white days ever paper hard near sentence better best across during today
    others however sure means knew try told young miles sun ways thing whole hear
"""
WORDS = tuple(_SAID.split())
KEPT = 4096  # texts that are remembered


def words(name: str, count: int) -> str:
    """So many words, as a rule about as many tokens. The same name begins with the same words, however many they are.

    Every word has a space before it, so that texts can be joined without a token changing that is whole.
    """
    return " " + " ".join(random.Random(name).choices(WORDS, k=count))


shared = lru_cache(maxsize=KEPT)(words)  # of the blocks that many prompts have
