"""What things cost: counters of a host → usage windows → quantities → amounts → signed receipts.

    host ── windows, numbered ──▶ database ── sums ──▶ Quantities ── PriceTable ──▶ lines, amount ── key ──▶ receipt

Everything here is a pure function of its arguments, in integers; docs/billing.md says the same in words, with an example.
"""
