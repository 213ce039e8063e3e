"""The published implementation's configuration files and tensor names. Imports datasets_manifest only."""
