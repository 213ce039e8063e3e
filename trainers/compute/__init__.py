"""How a device computes: batches on the device and the thread that feeds them, precision, compilation.

Imports recipe and m2can. Knows neither Ray nor MLflow.
"""
