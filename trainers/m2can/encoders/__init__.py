"""Text and picture encoders: ragged batches around any backbone, batch normalisation, packed texts."""
