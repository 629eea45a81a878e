"""The simulation: a seeded world in virtual time around the real flow, relay, books, fleet and upstream client.

Nothing sleeps, no socket is opened, no thread runs. One seed is one world, always the same:

    make sim SEED=123          one world, told step by step
    make sim WORLDS=10000      many, quietly
"""
