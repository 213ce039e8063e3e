"""From rows to encoded batches: the epoch's plan, views of pictures and texts, the Ray Data stream and the local one.

Imports records and manifest. Only `ray_stream` knows Ray.
"""
