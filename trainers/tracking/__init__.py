"""Everything that knows MLflow: the journal of epochs, its sender, runs, registration, the pyfunc model, provenance.

Imports loop and below.
"""
