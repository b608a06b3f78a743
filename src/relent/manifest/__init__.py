"""Configuration and manifests: read, validated and joined into a catalogue, without importing torch."""
