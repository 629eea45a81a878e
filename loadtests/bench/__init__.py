"""What the gateway costs, beside others, in one run:  make bench"""
