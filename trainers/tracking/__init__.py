"""Everything that knows MLflow: the sender of the journal, runs, registration, the pyfunc model, provenance.

Imports journal and below.
"""
