"""What is looked at before a run takes anything: recipe against data, network, disk; the needs of memory and how to lower them.

Imports tracking's addresses, model and below.
"""
