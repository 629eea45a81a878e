"""Decisions: values and a clock in, values out. No I/O, no HTTP, no asyncio."""
