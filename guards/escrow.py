"""How much of what is free a gateway is given, where many spend of one budget. Pure.

Whoever leases much asks seldom, but what lies with one gateway cannot be spent by another. So a lease shrinks with what
is left: half of it is shared out evenly at most, and again half of the rest, until nothing but what somebody needs at
this moment is given. (Balegas et al., «Extending Eventually Consistent Cloud Databases for Enforcing Numeric
Invariants», 2015, have the rights, and leave open how many are given; halving is ours.)
"""

AMOUNT_MAX = 2**53 - 1  # of anything that is leased: above it, numbers of Redis's scripts (doubles) are not exact


def given(free: int, gateways: int, want: int, need: int) -> int:
    """Say how much of an account a gateway is given, beyond what it has.

    gateways: that are there to share with, itself among them, at least 1. want: what it would like to have; need: with
    less than that it can do nothing. What is needed is given in full or, where it is not free, nothing at all is.
    """
    if need > free:
        return 0
    return max(need, min(want, free // (2 * gateways)))
